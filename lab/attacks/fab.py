"""The fast adaptive boundary attack: the nearest wrong image, by steps onto the linearised boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from detectors.perturb import Norm
from lab.attacks.boundary import Nearest, bisected, onto_plane
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Found, Scene
from lab.attacks.tasks import Multiclass

PULL_MAX = 0.1
"""Largest share of a step that is taken from the clean image instead of from where the search stands."""
OVERSHOOT = 1.05
BACK = 0.9
"""A misread point is drawn back to this share of its distance."""

HALVINGS = 5
"""Of the way back from the nearest point, in the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FAB(Method):
    """Alternating projections onto the boundary, from the clean image and from the best point, with steps back.

    Croce and Hein 2020, arXiv:1907.02044, in the targeted form FAB-T: one backward pass a step, aimed at the likeliest
    wrong classes in turn. Limits: it needs a gradient at the clean image, which a saturated model does not give.
    """

    name: ClassVar[str] = "fab"
    knowledge: ClassVar[Knowledge] = "gradients"
    bounded: ClassVar[bool] = False

    eps: float = math.inf
    steps: int = 100
    restarts: int = 1
    targets: int = 9
    norm: Norm = "linf"

    def _search(self, scene: Scene, start: int, draws: torch.Generator) -> Found:
        radius, nearest = scene.radius, Nearest(scene)
        free, first = scene.unbound(), start == 0
        if isinstance(scene.target.task, Multiclass):
            free = free.aiming_at_rank(start)
            with torch.no_grad():
                first = start < min(self.targets, free.logits(free.clean[:1]).shape[1] - 1)
        x = scene.clean if first or math.isinf(radius) else scene.anywhere(draws)
        for _ in range(self.steps):
            normal, lead, margin = free.gradient(x, "margin")
            nearest.keep(free, x, margin)
            if math.isfinite(radius):
                going = ~nearest.within(free, radius)
                if not bool(going.all()):
                    free, x, normal = free.only(going), x[going], normal[going]
                    lead, margin = lead[going], margin[going]
                    if not len(x):
                        break
            x = self._closer(free, x, normal, lead, margin < 0)
        else:
            nearest.keep(free, x, free.margin(x))
            self._polish(free, nearest)
        return nearest.found(radius)

    def _polish(self, scene: Scene, nearest: Nearest) -> None:
        """Look for a nearer point on the way back from the nearest."""
        scene = scene.only(nearest.distance[scene.index].isfinite())
        if len(scene.clean):
            x = bisected(scene, nearest.images[scene.index], HALVINGS)
            nearest.keep(scene, x, scene.margin(x))

    def _closer(self, scene: Scene, x: Tensor, normal: Tensor, lead: Tensor, misread: Tensor) -> Tensor:
        """Return the next points: on the plane where the linearised lead of the wrong class is nought."""
        back = torch.where(misread, BACK, 1.0).view(-1, 1, 1, 1)
        here = torch.lerp(scene.clean, x, back)
        from_here = onto_plane(here, normal, -_at(lead, normal, here - x), high=scene.high, norm=self.norm)
        from_clean = onto_plane(
            scene.clean, normal, -_at(lead, normal, scene.clean - x), high=scene.high, norm=self.norm
        )
        far, near = (scene.distance(scene.clean + change) for change in (from_here, from_clean))
        pull = (far / (far + near).clamp_min(1e-12)).clamp(max=PULL_MAX).view(-1, 1, 1, 1)
        moved = torch.lerp(here + OVERSHOOT * from_here, scene.clean + OVERSHOOT * from_clean, pull)
        return moved.clamp(0.0, scene.high)

    def _norm(self) -> Norm:
        return self.norm

    def _starts(self, classes: int) -> int:
        return self.restarts * max(1, min(self.targets, classes - 1))


def _at(lead: Tensor, normal: Tensor, away: Tensor) -> Tensor:
    """Return (N,): the linearised lead a little way off."""
    return lead + (normal * away).flatten(1).sum(dim=1)
