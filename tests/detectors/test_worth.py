"""A member is worth what the ensemble catches with it and not without it, under one budget of false alarms."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors.calibration import ConformalCalibration, ParetoTail, TailCalibration
from detectors.ensemble import Channel, Member, join, loudest
from detectors.errors import InputError
from detectors.worth import Trial, Worth, least_worth, worth


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
        Channel(name, weight, ParetoTail.fit(loudest(members, name, CLEAN))) for name, weight in weights.items()
    ]


def test_who_alone_catches_an_attack_is_worth_it_and_who_catches_nothing_costs_budget() -> None:
    attacked = scores(1, 400, twin=0.0, copy=0.0, fusion=8.0, idle=0.0)
    found = worth(*built(), Trial(CLEAN, attacked), 0.01)

    assert set(found) == set(HOMES)  # who decides nothing is not measured
    assert found["fusion"].alone > 0.99
    assert found["fusion"].gain > 0.9
    assert all(abs(found[name].gain) < 0.05 for name in ("twin", "copy", "idle"))
    assert found["fusion"].price is None


def test_who_catches_what_another_catches_adds_nothing() -> None:
    attacked = scores(2, 400, twin=8.0, copy=8.0, fusion=0.0, idle=0.0)
    found = worth(*built(), Trial(CLEAN, attacked), 0.01)
    assert min(found["twin"].alone, found["copy"].alone) > 0.99
    assert max(found["twin"].gain, found["copy"].gain) < 0.01


def test_a_member_that_the_informed_attacker_steps_around_has_a_price() -> None:
    """He meets the twins at their threshold, and calms the rest: whoever else shares the budget let him by."""
    adaptive = scores(3, 4000, twin=2.5, copy=0.0, fusion=-2.0, idle=-2.0)
    found = worth(*built(), Trial(CLEAN, scores(1, 400, twin=4.0, copy=4.0, fusion=4.0, idle=4.0), adaptive), 0.01)
    assert found["idle"].price is not None
    assert found["idle"].price > 0
    assert found["twin"].price is not None
    assert found["twin"].price < 0  # without it more get past


def test_who_adds_nothing_and_costs_something_goes_the_dearest_first_and_twins_never() -> None:
    worthless, dear, useful, free = (
        Worth(alone=1.0, gain=0.0, price=0.03), Worth(alone=1.0, gain=-0.01, price=0.2),
        Worth(alone=1.0, gain=0.1, price=0.2), Worth(alone=1.0, gain=0.0, price=0.0),
    )  # fmt: skip
    members = built()[0]
    told = {"twin": dear, "copy": dear, "fusion": worthless, "idle": dear}
    assert least_worth(members, told) == "idle"
    assert least_worth(members, told | {"idle": useful}) == "fusion"
    assert least_worth(members, told | {"idle": useful, "fusion": free}) is None
    assert least_worth(members, told | {"idle": useful, "fusion": replace(worthless, price=None)}) is None


def test_the_outlier_of_a_light_channel_is_not_louder_than_an_alarm_of_a_heavy_one() -> None:
    """Weights divide the excess: 4 mean excesses at weight 1/2 are louder than 6 at 1/4."""
    members, channels = built()

    def said(twin: float, fusion: float) -> Tensor:
        tails = {member.detector.name: member.tail for member in members}
        quiet = {name: torch.zeros(1) for name in CLEAN}
        loud = {"twin": beyond(tails["twin"], twin), "fusion": beyond(tails["fusion"], fusion)}
        return join(members, channels, quiet | loud)

    assert said(twin=4, fusion=0) > said(twin=0, fusion=6)
    assert said(twin=4, fusion=0) < said(twin=0, fusion=20)


def beyond(tail: TailCalibration, excesses: float) -> Tensor:
    """(1,) a score so many mean excesses over the last knot; 0 is a calm one."""
    state = tail.state()
    return (state["knots"][-1] + excesses * state["scale"])[None] if excesses else torch.zeros(1)


def test_too_little_to_compare_on_is_refused() -> None:
    few = {name: values[:50] for name, values in CLEAN.items()}
    with pytest.raises(InputError, match="50 clean scans are too few"):
        worth(*built(), Trial(few, CLEAN), 0.01)
    with pytest.raises(InputError, match="no attack"):
        worth(*built(), Trial(CLEAN, {name: values[:0] for name, values in CLEAN.items()}), 0.01)
