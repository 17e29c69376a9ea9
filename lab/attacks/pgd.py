"""Projected gradient descent, and the basic iterative method: the standard attacks of one who knows the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from detectors.perturb import Norm
from lab.attacks.attack import Target
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Best, Found, Loss, Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class PGD(Method):
    """Steps up the loss from random points of the ball, projected back after each.

    Madry et al. 2018, arXiv:1706.06083; on findings or masks the multi-label and segmentation attack (Xu et al. 2021,
    arXiv:2103.03438: `loss="ce"` is their mean binary cross-entropy). Limits: it knows nothing of a detector, so what
    it shows is the undefended model; against a detector only an attack on both says anything (Carlini and Wagner
    2017, arXiv:1705.07263).
    """

    name: ClassVar[str] = "pgd"
    knowledge: ClassVar[Knowledge] = "gradients"

    steps: int = 20
    restarts: int = 1
    """Starts; an image that is already misread is not attacked again."""
    stride: float = 0.15
    """Length of a step, as a share of the budget."""
    loss: Loss = "margin"
    norm: Norm = "linf"
    goal: int | None = None
    """The class that must be answered; None is content with any wrong one."""
    confidence: float = math.inf
    """An image leaves the batch when it is misread by more; infinite goes on for the least margin."""
    random: bool = True
    """Start at random points; else at the images themselves."""

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        best = Best(scene)
        x = scene.anywhere(draws) if self.random else scene.clean
        for _ in range(self.steps):
            gradient, _, margin = scene.gradient(x, self.loss)
            best.keep(scene, x, margin)
            going = margin >= -self.confidence
            if not bool(going.all()):
                scene, x, gradient = scene.only(going), x[going], gradient[going]
                if not len(x):
                    return best.found()
            x = scene.step(x, gradient, self.stride * scene.radius)
        best.keep(scene, x, scene.margin(x))
        return best.found()

    def _scene(self, target: Target, images: Tensor, labels: Tensor, _start: int) -> Scene:
        scene = Scene.of(target, images, labels, eps=self.eps, norm=self.norm)
        return scene if self.goal is None else scene.aiming(self.goal)

    def _starts(self, _classes: int) -> int:
        return self.restarts


@dataclass(frozen=True, slots=True, kw_only=True)
class BIM(PGD):
    """Small steps up the cross-entropy from the image itself: PGD without the random start.

    Kurakin et al. 2017, arXiv:1607.02533. Limits: those of PGD, and one start alone.
    """

    name: ClassVar[str] = "bim"

    stride: float = 0.1
    loss: Loss = "ce"
    random: bool = False
