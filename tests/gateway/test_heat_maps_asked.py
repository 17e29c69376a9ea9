"""A map is of what detectors saw: where none looked, there is nothing to show, whatever could be drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Never

import pytest

from gateway.case import Case
from gateway.deadline import Deadline
from gateway.errors import Settled
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.heat_maps import Easel, HeatMaps, Wanted
from gateway.policy import DETECTION
from gateway.store.kek import RawKek
from gateway.store.quarantine import Quarantine
from gateway.telemetry.metrics import Metrics
from gateway.verdict import Disposition, Verdict

HELD = Verdict(Disposition.QUARANTINE, (GatewayReason.UNSUPPORTED_IMAGE,))


class Untouched(Mapping[str, Easel]):
    """Easels for every route, with which nobody may draw."""

    def __getitem__(self, route: str) -> Easel:
        return Drawn()  # type: ignore[return-value]

    def __iter__(self) -> Never:
        raise AssertionError

    def __len__(self) -> int:
        return 1


class Drawn:
    def draw(self, *_: object) -> Never:
        raise AssertionError("a scan was drawn that no detector has looked at")


def test_what_no_detector_looked_at_is_not_drawn(tmp_path: Path, make_case: Callable[..., Case]) -> None:
    quarantine = Quarantine(tmp_path / "q", RawKek(bytes(32)), name_key=bytes(32), bytes_max=1 << 24, metrics=Metrics())
    unseen = Finding(DETECTION, Outcome.INDETERMINATE, GatewayReason.NOT_RUN, "")
    identity = quarantine.hold(make_case(findings=(unseen,)), HELD)
    maps = HeatMaps(
        Untouched(), wanted=Wanted(), quarantine=quarantine, audit=None, metrics=Metrics()  # type: ignore[arg-type]
    )  # fmt: skip

    with pytest.raises(Settled, match="no detector has looked at it"):
        maps.read(identity, "reviewer", Deadline.after(10.0))

    quarantine.close()
