"""The attack of Carlini and Wagner: the least L2 change that misleads by a stated confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from detectors.perturb import Norm
from lab.attacks.adam import Adam
from lab.attacks.boundary import Nearest
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Found, Scene, rising

EDGE = 1 - 1e-4
"""How near to black or white a pixel may be where its change of variable still has a gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CarliniWagner(Method):
    """Adam on length squared plus a weighted hinge of the margin, the weight bisected image by image.

    Carlini and Wagner 2017, arXiv:1608.04644, L2, in the variable whose hyperbolic tangent is the pixel. An image
    whose loss has stopped falling leaves a round. Limits: slow, and blind to detectors unless they stand in the
    target's model (the same authors, arXiv:1705.07263).
    """

    name: ClassVar[str] = "cw"
    knowledge: ClassVar[Knowledge] = "gradients"
    bounded: ClassVar[bool] = False

    eps: float = math.inf
    steps: int = 100
    """In each round of the bisection."""
    searches: int = 5
    rate: float = 0.01
    confidence: float = 0.0
    weight: float = 0.1
    """Of the hinge, in the first round."""

    def _search(self, scene: Scene, _start: int, _draws: torch.Generator) -> Found:
        nearest, radius = Nearest(scene), scene.radius
        free = scene.unbound()
        weight = torch.full((len(scene.clean),), self.weight, device=scene.clean.device)
        least, most = torch.zeros_like(weight), torch.full_like(weight, torch.inf)
        for _ in range(self.searches):
            misled = self._round(free, weight, nearest)
            least, most = torch.where(misled, least, weight), torch.where(misled, weight, most)
            weight = torch.where(most.isinf(), 10 * weight, (least + most) / 2)
        return nearest.found(radius)

    def _round(self, scene: Scene, weight: Tensor, nearest: Nearest) -> Tensor:
        """Return (N,), which images this weight of the hinge misleads."""
        misled = torch.zeros(len(weight), dtype=torch.bool, device=weight.device)
        w = torch.atanh((2 * scene.clean / scene.high - 1) * EDGE)
        adam, before = Adam.of(w), torch.full_like(weight, torch.inf)
        for k in range(self.steps):
            leaf = w.detach().requires_grad_(True)
            with torch.enable_grad():
                x = scene.high * (torch.tanh(leaf) / EDGE + 1) / 2
                logits = scene.logits(x)
                hinge = (self.confidence - rising(scene, "margin", logits)).clamp_min(-_SLACK)
                loss = (x - scene.clean).flatten(1).square().sum(dim=1) + weight[scene.index] * hinge
                (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            margin = scene.judge(logits.detach())
            misled[scene.index] |= margin < -self.confidence
            nearest.keep(scene, x.detach(), margin, confidence=self.confidence)
            adam, down = adam.after(gradient)
            w = w - self.rate * down
            if k % max(1, self.steps // 10) == 0:
                going = loss.detach() < 0.9999 * before[scene.index]
                before[scene.index] = loss.detach()
                if not bool(going.all()):
                    scene, w, adam = scene.only(going), w[going], adam.only(going)
                    if not len(w):
                        break
        return misled

    def _norm(self) -> Norm:
        return "l2"


_SLACK = 1e-3
"""Logits beyond the wanted confidence: at nought itself the answer is not wrong yet."""
