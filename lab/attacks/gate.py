"""The deployed detectors as an informed attacker asks them: how far he is from calm, and which way it lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from detectors.ensemble import Ensemble
from detectors.observation import Needs, Observation
from lab.attacks.scene import Scene

SLACK = 0.05
"""How far beyond a border a point is driven, so that rounding does not bring it back; nats, and logits."""

Follow = Callable[[Scene, Observation], Tensor]
"""What is lowered (N,) to be misread; keeps the graph."""


def own_margin(scene: Scene, seen: Observation) -> Tensor:
    """The protected model's margin: the usual thing to lower."""
    return scene.judge(seen.logits)


class Pull(NamedTuple):
    """Where a point stands and where both wishes pull it."""

    margin: Tensor
    """(N,) of the class; below 0 is misread."""
    excess: Tensor
    """(N,) of the statistic over its threshold; below 0 is calm."""
    misread: Tensor
    """Direction in which what is followed falls, shaped like the images, its mean absolute value 1."""
    calm: Tensor
    """The same for all channels that are too loud; 0 where none is."""

    def only(self, chosen: Tensor) -> Pull:
        """Those chosen, a mask (N,)."""
        return Pull(*(each[chosen] for each in self))

    @property
    def worst(self) -> Tensor:
        """(N,): below 0 where the point is misread and calm."""
        return torch.maximum(self.margin, self.excess)


@dataclass(frozen=True, slots=True)
class Gate:
    """Model, detectors and threshold, all in the attacker's hands."""

    ensemble: Ensemble
    threshold: float
    """Of the statistic, above which a scan is flagged."""
    samples: int
    """Draws that a gradient is averaged over, where a detector draws (Athalye et al. 2018, arXiv:1707.07397)."""
    follow: Follow = own_margin
    needs: Needs = field(default_factory=Needs)
    """What `follow` reads beside what decides."""

    def pulls(self, scene: Scene, x: Tensor, draws: torch.Generator) -> Pull:
        """Both directions at a point, from one pass over all models (and draw)."""
        needs = self.ensemble.deciding_needs | self.needs
        misread, calm = torch.zeros_like(x), torch.zeros_like(x)
        margins, excesses = [], []
        for _ in range(self.samples if needs.random else 1):
            seeds = torch.randint(-(2**62), 2**62, (len(x),), generator=draws, device=x.device)
            leaf = x.detach().requires_grad_(True)
            with torch.enable_grad():
                seen = self.ensemble.probe.observe(
                    scene.target.view(scene.shown(leaf)), needs, seeds=seeds, differentiable=True
                )  # fmt: skip
                excess = self.ensemble.voices(seen) - self.threshold + SLACK
                (down,) = torch.autograd.grad(-self.follow(scene, seen).sum(), leaf, retain_graph=True)
                (quiet,) = torch.autograd.grad(-excess.clamp_min(0).sum(), leaf)
            misread, calm = misread + down, calm + quiet
            margins.append(scene.judge(seen.logits).detach())
            excesses.append(excess.detach().amax(0))
        margin, excess = torch.stack(margins).mean(0) + SLACK, torch.stack(excesses).mean(0)
        return Pull(margin, excess, _even(misread), _even(calm))


def joint(pull: Pull, weight: Tensor) -> Tensor:
    """Both at once, calm with its weight (N, 1, 1, 1): Carlini and Wagner 2017, arXiv:1705.07263."""
    loud = (pull.excess >= 0).view(-1, 1, 1, 1)
    return pull.misread + torch.where(loud, weight * pull.calm, torch.zeros_like(pull.calm))


def careful(pull: Pull, _weight: Tensor) -> Tensor:
    """Misreading until it is reached, then calm without what works against misreading."""
    against = _part(pull.calm, pull.misread).clamp_max(0)
    return torch.where(_wrong(pull), pull.calm - against * pull.misread, pull.misread)


def selective(pull: Pull, _weight: Tensor) -> Tensor:
    """What is still missing, and nothing else: Bryniarski et al. 2022, arXiv:2106.15023, selective PGD."""
    return torch.where(_wrong(pull), pull.calm, pull.misread)


def orthogonal(pull: Pull, _weight: Tensor) -> Tensor:
    """What is still missing, along which the other stays as it is: the same authors' orthogonal PGD."""
    quiet = pull.calm - _part(pull.calm, pull.misread) * pull.misread
    down = pull.misread - _part(pull.misread, pull.calm) * pull.calm
    return torch.where(_wrong(pull), quiet, down)


def _wrong(pull: Pull) -> Tensor:
    return (pull.margin < 0).view(-1, 1, 1, 1)


def _part(first: Tensor, second: Tensor) -> Tensor:
    """How much of a second direction there is in a first: (N, 1, 1, 1)."""
    together = (first * second).sum((1, 2, 3), keepdim=True)
    return together / second.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-12)


def _even(direction: Tensor) -> Tensor:
    """A direction whose mean absolute value is 1, or 0 where there is none."""
    size = direction.abs().mean((1, 2, 3), keepdim=True)
    return torch.where(size > 0, direction / size.clamp_min(torch.finfo(size.dtype).tiny), torch.zeros_like(direction))
