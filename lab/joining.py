"""Joins fitted detectors: what a large score means, which channel has a share of the budget, and the rule for all."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detectors.calibration import ConformalCalibration, ParetoTail, TailCalibration
from detectors.detector import Detector
from detectors.ensemble import GRADIENT, ROBUST, SENSITIVE, WEIGHTS, Channel, Ensemble, Member, join
from detectors.errors import InputError
from detectors.methods.fusion import Fusion
from detectors.methods.gradient_residual import GradientResidual
from detectors.methods.twins import COPIED_TWIN, SMALL_TWIN
from detectors.probe import Probe

Tailed = tuple[Detector, TailCalibration, str | None]
"""A detector, its tail on A, and its channel."""
HOMES: Mapping[str, str] = {
    COPIED_TWIN: ROBUST,
    SMALL_TWIN: ROBUST,
    Fusion.name: SENSITIVE,
    GradientResidual.name: GRADIENT,
}
"""The channels of those that decide; every other detector is reported and weighs nothing."""


def tails(detectors: Sequence[Detector], scores: Mapping[str, Tensor]) -> list[Tailed]:
    """On A: what it means for each score to be large; raises `InputError`, which names the detector."""
    return [(each, _tail(each.name, scores[each.name]), HOMES.get(each.name)) for each in detectors]


def channels(members: list[Tailed], scores: Mapping[str, Tensor]) -> list[Channel]:
    """The channels that have members; those share the whole budget."""
    found = []
    staffed = {name: weight for name, weight in WEIGHTS.items() if name in {home for *_, home in members}}
    for name, weight in staffed.items():
        voices = [tail.surprise(scores[each.name]) for each, tail, home in members if home == name]
        found.append(Channel(name, weight / sum(staffed.values()), ParetoTail.fit(torch.stack(voices).amax(0))))
    return found


def calibrated(
    probe: Probe, members: list[Tailed], channels: list[Channel], scores: Mapping[str, Tensor], fpr: float
) -> Ensemble:
    """The ensemble with the conformal rule of these clean scores."""
    staffed = [
        Member(each, tail, ConformalCalibration.fit(scores[each.name], fpr), home) for each, tail, home in members
    ]
    return Ensemble(probe, staffed, channels, ConformalCalibration.fit(join(staffed, channels, scores), fpr))


def _tail(name: str, scores: Tensor) -> TailCalibration:
    try:
        return TailCalibration.fit(scores)
    except InputError as error:
        raise InputError(f"detector {name}: {error}") from error
