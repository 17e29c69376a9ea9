"""A gateway's counters, read from its metrics endpoint."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping, Sequence

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 10.0
BYTES_MAX = 16 << 20
"""Of one page of metrics; a gateway's has some hundred kilobytes."""


def scraped(address: str) -> Mapping[str, float]:
    """Return every series at HOST:PORT, with its labels, and its value.

    Raises:
        OSError: nothing answers there.
        ValueError: what answers are no metrics.
    """
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT_S) as reply:
        text = reply.read(BYTES_MAX).decode()
    return {
        f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))}}}": sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def grown(before: Mapping[str, float], after: Mapping[str, float], shown: Sequence[str]) -> Mapping[str, float]:
    """Return by how much the series whose names begin with one of `shown` have grown, those that have."""
    changes = {name: value - before.get(name, 0.0) for name, value in after.items() if name.startswith(tuple(shown))}
    return {name: change for name, change in sorted(changes.items()) if change}
