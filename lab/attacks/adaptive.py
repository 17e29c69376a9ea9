"""The informed attacker: he holds model, twins, detectors and threshold, and wants to be misread and not noticed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from detectors.ensemble import Ensemble
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Best, Found, Scene

MOMENTUM = 0.75
TURN = 1.1
"""By how much the detectors' weight in the joint loss rises while an image is misread, and falls while it is not."""
SLACK = 0.05
"""How far beyond a border a point is driven, so that rounding does not bring it back; nats, and logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive(Method):
    """Climbs misreading and calm together, on the very statistic that decides; the outcome counts when both hold.

    Starts alternate between two attacks: a joint one, whose weight is moved for each image while it walks (Carlini and
    Wagner 2017, arXiv:1705.07263), and a selective one, which follows the detectors' gradient without its part against
    misreading once the image is misread (Bryniarski et al. 2022, arXiv:2106.15023, selective and orthogonal PGD). Every
    channel of the OR that is too loud is pushed at once (Tramer et al. 2020, arXiv:2002.08347: attack what decides).
    What has no gradient goes by its stated surrogate, the input gradient that a detector reads is held for each step,
    and what draws is averaged over fresh draws (Athalye et al. 2018, arXiv:1707.07397). Limits: it is one attack; a
    better one may find more, so what it leaves is a lower bound on evasion.

    In the outcome, `margin` is the larger of the class margin and of how far the statistic is over its threshold:
    `success` means misread and not flagged, and `history` says after how many steps.
    """

    name: ClassVar[str] = "adaptive"
    knowledge: ClassVar[Knowledge] = "gradients"

    ensemble: Ensemble = field(repr=False)
    """What stands in front of the target's model."""
    alpha: float = 0.01
    """The deployed rule that is to be passed, p > alpha."""
    steps: int = 100
    restarts: int = 2
    """Starts: the first and every second one joint, the others selective."""
    stride: float = 0.25
    """Length of the first steps, as a share of the budget; it falls to a tenth of that."""
    samples: int = 1
    """Draws that a gradient is averaged over, where a detector draws."""

    def _search(self, scene: Scene, start: int, draws: torch.Generator) -> Found:
        gate = _Gate(self.ensemble, self.ensemble.conformal.threshold(self.alpha), self.samples)
        best = Best(scene)
        x = scene.clean.clone() if start < 2 else scene.anywhere(draws)
        fell = torch.zeros(self.steps + 1, dtype=torch.int64)
        weight, pace = torch.ones(len(x), 1, 1, 1, device=x.device), torch.zeros_like(x)
        for k in range(self.steps):
            pull = gate.pulls(scene, x, draws)
            best.keep(scene, x, torch.maximum(pull.margin, pull.excess))
            going = torch.maximum(pull.margin, pull.excess) >= 0
            if not bool(going.all()):
                fell[k] = int((~going).sum())
                scene, pull = scene.only(going), pull.only(going)
                x, weight, pace = x[going], weight[going], pace[going]
                if not len(x):
                    return best.found()._replace(curve=fell.cumsum(0))
            wrong = (pull.margin < 0).view(-1, 1, 1, 1)
            along = _selective(pull, wrong) if start % 2 else _joint(pull, weight)
            weight = torch.where(wrong, weight * TURN, weight / TURN)
            pace = MOMENTUM * pace + along
            share = 0.1 + 0.45 * (1 + math.cos(math.pi * k / self.steps))
            x = scene.step(x, pace, self.stride * share * scene.radius)
        pull = gate.pulls(scene, x, draws)
        best.keep(scene, x, torch.maximum(pull.margin, pull.excess))
        fell[self.steps] = int((torch.maximum(pull.margin, pull.excess) < 0).sum())
        return best.found()._replace(curve=fell.cumsum(0))

    def _starts(self, _classes: int) -> int:
        return self.restarts


class _Pull(NamedTuple):
    """Where misreading and calm lie from a point; every field has the batch first."""

    margin: Tensor
    """(N,) of the class; below 0 is misread."""
    excess: Tensor
    """(N,) of the statistic over its threshold; below 0 is calm."""
    misread: Tensor
    """Direction in which the margin falls, shaped like the images, its mean absolute value 1."""
    calm: Tensor
    """The same for all channels that are too loud; 0 where none is."""

    def only(self, chosen: Tensor) -> _Pull:
        return _Pull(*(each[chosen] for each in self))


@dataclass(frozen=True, slots=True)
class _Gate:
    """The detectors as the attacker asks them."""

    ensemble: Ensemble
    threshold: float
    samples: int

    def pulls(self, scene: Scene, x: Tensor, draws: torch.Generator) -> _Pull:
        """Both directions at a point, from one pass over all models (and draw)."""
        needs = self.ensemble.deciding_needs
        misread, calm = torch.zeros_like(x), torch.zeros_like(x)
        margins, excesses = [], []
        for _ in range(self.samples if needs.random else 1):
            seeds = torch.randint(-(2**62), 2**62, (len(x),), generator=draws, device=x.device)
            leaf = x.detach().requires_grad_(True)
            with torch.enable_grad():
                values = scene.target.low + leaf * scene.target.unit
                stored = values + (scene.stored(leaf) - values).detach()
                seen = self.ensemble.probe.observe(
                    scene.target.view(stored), needs, seeds=seeds, differentiable=True
                )  # fmt: skip
                margin = scene.judge(seen.logits)
                excess = self.ensemble.voices(seen) - self.threshold + SLACK
                (down,) = torch.autograd.grad(-margin.sum(), leaf, retain_graph=True)
                (quiet,) = torch.autograd.grad(-excess.clamp_min(0).sum(), leaf)
            misread, calm = misread + down, calm + quiet
            margins.append(margin.detach())
            excesses.append(excess.detach().amax(0))
        margin, excess = torch.stack(margins).mean(0) + SLACK, torch.stack(excesses).mean(0)
        return _Pull(margin, excess, _even(misread), _even(calm))


def _even(direction: Tensor) -> Tensor:
    """A direction whose mean absolute value is 1, or 0 where there is none."""
    size = direction.abs().mean((1, 2, 3), keepdim=True)
    return torch.where(size > 0, direction / size.clamp_min(torch.finfo(size.dtype).tiny), torch.zeros_like(direction))


def _joint(pull: _Pull, weight: Tensor) -> Tensor:
    """Both at once, calm with its weight."""
    loud = (pull.excess >= 0).view(-1, 1, 1, 1)
    return pull.misread + torch.where(loud, weight * pull.calm, torch.zeros_like(pull.calm))


def _selective(pull: _Pull, wrong: Tensor) -> Tensor:
    """Misreading until it is reached, then calm without what works against misreading."""
    together = (pull.calm * pull.misread).sum((1, 2, 3), keepdim=True)
    against = together.clamp_max(0) / pull.misread.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
    return torch.where(wrong, pull.calm - against * pull.misread, pull.misread)
