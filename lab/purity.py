"""Looks for scans that are too loud to be clean among those that detectors are calibrated on.

Whoever gets attacked scans among the clean ones raises the thresholds, and only by scans that detectors find loud: a
quiet one moves nothing. So each clean part is compared with what the other one's body says of its tail. The body is
robust, a mean excess is not: as long as fewer than a fifth of the scans are foreign, their scores do not enter it.
Limits: what an attacker keeps below the bound stays, and moves a threshold up to it; nothing is said of the scans that
the detectors themselves learnt from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.ensemble import Ensemble
from lab.workbench import Workbench

BODY = 0.8
"""Of the other part's scores, by rank: what lies above it says nothing about the tail."""
CHANCE = 0.01
"""With which a clean pair of parts gives cause for doubt, if its tails are exponential."""
FEWEST = 20


@dataclass(frozen=True, slots=True)
class Doubts:
    """Places of scans, in their part, that are too loud to be clean."""

    a: tuple[int, ...]
    b: tuple[int, ...]

    def __bool__(self) -> bool:
        return bool(self.a or self.b)

    def document(self) -> dict[str, dict[str, list[int]]]:
        """The manifest's entry."""
        return {"suspicious": {"a": list(self.a), "b": list(self.b)}}


NOBODY = Doubts((), ())


def doubted(bench: Workbench, ensemble: Ensemble, a: Tensor, b: Tensor) -> Doubts:
    """Compare the clean scans A and B, (N, C, H, W) as the model takes them, by what decides."""
    deciding = [member.detector for member in ensemble.members if member.channel]
    told = [bench.scores(ensemble.probe, deciding, images) for images in (a, b)]
    return doubts(*({name: values.cpu() for name, values in each.items()} for each in told))


def doubts(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Doubts:
    """Compare two clean parts, each with the other.

    Args:
        a: by deciding detector, the scores (N,) of the part that orders.
        b: the same, (M,), of the part that promises.

    Returns:
        The scans in doubt; none where the other part is too small to say anything.
    """
    of_a, of_b = too_loud(a, b), too_loud(b, a)
    return Doubts(tuple(of_a.nonzero()[:, 0].tolist()), tuple(of_b.nonzero()[:, 0].tolist()))


def too_loud(scores: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> Tensor:
    """Which scans are beyond what the body of others allows.

    From its upper quarter the others' tail is drawn on as an exponential; a scan is too loud where the chance that any
    of its part would be so loud to any detector is below `CHANCE` (Bonferroni).

    Args:
        scores: by detector, (N,).
        others: by detector, (M,); fewer than `FEWEST` say nothing.

    Returns:
        (N,) bool.
    """
    if any(len(each) < FEWEST for each in others.values()):
        return torch.zeros(len(next(iter(scores.values()))), dtype=torch.bool)
    loudness = torch.stack([excess(scores[name], others[name]) for name in others]).amax(0)
    return loudness > math.log(len(loudness) * len(others) / CHANCE)


def excess(scores: Tensor, others: Tensor) -> Tensor:
    """(N,): minus the logarithm of the chance of a score, from the body of other scores; at least 0."""
    middle, edge = torch.quantile(others.double(), torch.tensor([0.5, BODY], dtype=torch.float64))
    scale = (edge - middle) / math.log(0.5 / (1 - BODY))
    floor = 1e-9 + 1e-6 * float(edge.abs())
    beyond = (scores.double() - edge).clamp_min(0) / scale.clamp_min(floor)
    return torch.where(beyond > 0, beyond - math.log(1 - BODY), torch.zeros_like(beyond))
