"""A member is worth what the ensemble catches with it and not without it, under one budget of false alarms."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors.calibration import ConformalCalibration, TailCalibration
from detectors.ensemble import Channel, Member, loudest
from detectors.errors import InputError
from detectors.worth import worth


@dataclass(frozen=True, slots=True)
class Named:
    """As much of a detector as its scores need."""

    name: str


def scores(seed: int, count: int, **levels: float) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(count, generator=generator) + level for name, level in levels.items()}


CLEAN = scores(0, 6000, twin=0.0, copy=0.0, fusion=0.0, idle=0.0, report=0.0)
HOMES: dict[str, str | None] = {"twin": "robust", "copy": "robust", "fusion": "sensitive", "idle": "other"}


def built() -> tuple[list[Member], list[Channel]]:
    def member(name: str, home: str | None) -> Member:
        detector: Any = Named(name)
        return Member(detector, TailCalibration.fit(CLEAN[name]), ConformalCalibration.fit(CLEAN[name], 0.01), home)

    members = [member(name, home) for name, home in (HOMES | {"report": None}).items()]
    weights = {"robust": 0.5, "sensitive": 0.25, "other": 0.25}
    return members, [
        Channel(name, weight, TailCalibration.fit(loudest(members, name, CLEAN))) for name, weight in weights.items()
    ]


def test_who_alone_catches_an_attack_is_worth_it_and_who_catches_nothing_costs_budget() -> None:
    attacked = scores(1, 400, twin=0.0, copy=0.0, fusion=8.0, idle=0.0)
    found = worth(*built(), CLEAN, attacked, 0.01)

    assert set(found) == set(HOMES)  # who decides nothing is not measured
    assert found["fusion"].alone > 0.99
    assert found["fusion"].gain > 0.9
    assert all(abs(found[name].gain) < 0.05 for name in ("twin", "copy", "idle"))
    assert found["fusion"].price is None


def test_who_catches_what_another_catches_adds_nothing() -> None:
    attacked = scores(2, 400, twin=8.0, copy=8.0, fusion=0.0, idle=0.0)
    found = worth(*built(), CLEAN, attacked, 0.01)
    assert min(found["twin"].alone, found["copy"].alone) > 0.99
    assert max(found["twin"].gain, found["copy"].gain) < 0.01


def test_a_member_that_the_informed_attacker_steps_around_has_a_price() -> None:
    """He meets the twins at their threshold, and calms the rest: whoever else shares the budget let him by."""
    adaptive = scores(3, 4000, twin=2.5, copy=0.0, fusion=-2.0, idle=-2.0)
    found = worth(*built(), CLEAN, scores(1, 400, twin=4.0, copy=4.0, fusion=4.0, idle=4.0), 0.01, adaptive)
    assert found["idle"].price is not None
    assert found["idle"].price > 0
    assert found["twin"].price is not None
    assert found["twin"].price < 0  # without it more get past


def test_too_little_to_compare_on_is_refused() -> None:
    few = {name: values[:50] for name, values in CLEAN.items()}
    with pytest.raises(InputError, match="50 clean scans are too few"):
        worth(*built(), few, CLEAN, 0.01)
    with pytest.raises(InputError, match="no attack"):
        worth(*built(), CLEAN, {name: values[:0] for name, values in CLEAN.items()}, 0.01)
