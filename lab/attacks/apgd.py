"""Auto-PGD: projected gradient descent that chooses its own step sizes, for the parameter-free part of AutoAttack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from detectors.perturb import Norm
from lab.attacks.method import Knowledge, Method, checkpoints
from lab.attacks.scene import Best, Found, Loss, Scene
from lab.attacks.tasks import Multiclass

MOMENTUM = 0.75
RISING = 0.75
"""Share of the steps since the last checkpoint that must have climbed, else the step is halved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class APGD(Method):
    """Momentum steps that start at twice the budget and are halved, image by image, where they stop climbing.

    Croce and Hein 2020, arXiv:2003.01690: APGD-CE, APGD-DLR, and APGD-T with `targets`. Limits: as PGD it follows the
    model alone, and a gradient that says nothing leads nowhere; hence Square beside it in AutoAttack.
    """

    name: ClassVar[str] = "apgd"
    knowledge: ClassVar[Knowledge] = "gradients"
    free: ClassVar[frozenset[str]] = frozenset({"targets"})

    steps: int = 100
    restarts: int = 1
    loss: Loss = "ce"
    norm: Norm = "linf"
    targets: int = 0
    """Starts are aimed at so many of the likeliest wrong classes in turn; 0 aims at none."""
    confidence: float = 0.0
    """An image leaves the batch when it is misread by more."""

    def _search(self, scene: Scene, start: int, draws: torch.Generator) -> Found:
        if self.targets and isinstance(scene.target.task, Multiclass):
            scene = scene.aiming_at_rank(start)
        best = Best(scene)
        x = scene.anywhere(draws)
        gradient, value, margin = scene.gradient(x, self.loss)
        best.keep(scene, x, margin)
        walk = _Walk.begin(x, gradient, value, 2 * scene.radius)
        due, since = set(checkpoints(self.steps)), 0
        for k in range(1, self.steps):
            going = margin >= -self.confidence
            if not bool(going.all()):
                scene, walk = scene.only(going), walk.only(going)
                if not len(walk.x):
                    break
            x = scene.step(walk.x, walk.gradient, walk.size)
            if k > 1:
                x = scene.inside(walk.x + MOMENTUM * (x - walk.x) + (1 - MOMENTUM) * (walk.x - walk.before))
            gradient, value, margin = scene.gradient(x, self.loss)
            best.keep(scene, x, margin)
            walk, since = walk.on(x, gradient, value), since + 1
            if k in due:
                walk, since = walk.reconsidered(since), 0
        return best.found()

    def _norm(self) -> Norm:
        return self.norm

    def _starts(self, classes: int) -> int:
        return self.restarts * max(1, min(self.targets, classes - 1))


class _Walk(NamedTuple):
    """Where each image is, and whether its step still pays: every field has the batch first."""

    x: Tensor
    before: Tensor
    gradient: Tensor
    value: Tensor
    size: Tensor
    peak: Tensor
    """Greatest loss so far, and where it was."""
    peak_x: Tensor
    peak_gradient: Tensor
    rises: Tensor
    """Steps since the last checkpoint that climbed."""
    peak_then: Tensor
    """The peak at the last checkpoint, and whether the step was halved there."""
    halved_then: Tensor

    @classmethod
    def begin(cls, x: Tensor, gradient: Tensor, value: Tensor, size: float) -> _Walk:
        sizes = torch.full((len(x), 1, 1, 1), size, device=x.device)
        none = torch.zeros_like(value)
        return cls(x, x, gradient, value, sizes, value, x, gradient, none, value, torch.ones_like(none).bool())

    def only(self, going: Tensor) -> _Walk:
        return _Walk(*(each[going] for each in self))

    def on(self, x: Tensor, gradient: Tensor, value: Tensor) -> _Walk:
        """Take a step that was made."""
        higher = value > self.peak
        wide = higher.view(-1, 1, 1, 1)
        return self._replace(
            x=x,
            before=self.x,
            gradient=gradient,
            value=value,
            peak=torch.where(higher, value, self.peak),
            peak_x=torch.where(wide, x, self.peak_x),
            peak_gradient=torch.where(wide, gradient, self.peak_gradient),
            rises=self.rises + (value > self.value).float(),
        )

    def reconsidered(self, since: int) -> _Walk:
        """Halve the step, and go back to the peak, where too few of the steps `since` the last checkpoint climbed."""
        halved = (self.rises < RISING * since) | (~self.halved_then & (self.peak <= self.peak_then))
        wide = halved.view(-1, 1, 1, 1)
        return self._replace(
            x=torch.where(wide, self.peak_x, self.x),
            before=torch.where(wide, self.peak_x, self.before),
            gradient=torch.where(wide, self.peak_gradient, self.gradient),
            value=torch.where(halved, self.peak, self.value),
            size=torch.where(wide, self.size / 2, self.size),
            rises=torch.zeros_like(self.rises),
            peak_then=self.peak,
            halved_then=halved,
        )
