"""What is done with the log of a running gateway beside writing it, as the configuration says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gateway.audit.collectors import Forwarding
from gateway.audit.log import AuditLog
from gateway.audit.retention import Retention
from gateway.audit.tree import SIZE_MAX
from gateway.settings.audit import AuditConfig
from gateway.telemetry.metrics import Metrics


@contextmanager
def tending(
    config: AuditConfig,
    log: AuditLog,
    *,
    keys: Sequence[Ed25519PublicKey],
    directory: Path,
    ae_titles: Sequence[str],
    metrics: Metrics,
) -> Iterator[None]:
    """For the block, tell every collector what is written, and prune what was kept for long enough and told to all.

    Args:
        config: says to whom, and for how long.
        log: the running gateway's.
        keys: public checkpoint keys, the present and the retired ones.
        directory: where it stands with each collector.
        ae_titles: by which DICOM nodes know this gateway.
        metrics: told how far behind each collector is.

    Raises:
        ConfigError: a collector cannot be served.
    """
    with ExitStack() as closing:
        collectors = [
            closing.enter_context(Forwarding(each, log, directory=directory, ae_titles=ae_titles, metrics=metrics))
            for each in config.collectors
        ]

        def needed_from() -> int:
            return min((each.next for each in collectors), default=SIZE_MAX)

        if config.retention_days_max is not None:
            closing.enter_context(Retention(log, keys, days_max=config.retention_days_max, needed_from=needed_from))
        yield
