"""DeepFool: the shortest way across the nearest linearised boundary, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from detectors.perturb import Norm
from lab.attacks.boundary import Nearest, onto_plane
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Found, Scene
from lab.attacks.tasks import Multiclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepFool(Method):
    """Cross the nearest of the linearised boundaries of the likeliest wrong classes, until the answer is wrong.

    Moosavi-Dezfooli et al. 2016, arXiv:1511.04599. Limits: it stops at the first crossing, a point that any harmless
    change may carry back; a storable image needs some steps more, since a change under half a step is no change.
    """

    name: ClassVar[str] = "deepfool"
    knowledge: ClassVar[Knowledge] = "gradients"
    bounded: ClassVar[bool] = False

    eps: float = math.inf
    steps: int = 50
    overshoot: float = 0.02
    candidates: int = 10
    """Wrong classes whose boundaries are looked at: one backward pass each."""
    norm: Norm = "l2"

    def _search(self, scene: Scene, _start: int, _draws: torch.Generator) -> Found:
        radius, nearest = scene.radius, Nearest(scene)
        scene = scene.unbound()
        x = scene.clean
        for _ in range(self.steps):
            normal, lead, margin = self._boundary(scene, x)
            nearest.keep(scene, x, margin)
            going = margin >= 0
            if not bool(going.all()):
                scene, x, normal, lead = scene.only(going), x[going], normal[going], lead[going]
                if not len(x):
                    return nearest.found(radius)
            change = onto_plane(x, normal, -lead, high=scene.high, norm=self.norm)
            x = (x + (1 + self.overshoot) * change).clamp(0.0, scene.high)
        nearest.keep(scene, x, scene.margin(x))
        return nearest.found(radius)

    def _boundary(self, scene: Scene, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient (N, C, rows, columns) and lead (N,) of the nearest boundary, and the margin (N,)."""
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = scene.logits(leaf)
            leads = self._leads(scene, logits)
            gradients = [
                torch.autograd.grad(lead.sum(), leaf, retain_graph=k + 1 < len(leads))[0]
                for k, lead in enumerate(leads)
            ]
        far = [
            lead.detach().abs() / gradient.flatten(1).norm(p=2 if self.norm == "l2" else 1, dim=1).clamp_min(1e-12)
            for lead, gradient in zip(leads, gradients, strict=True)
        ]
        choice = torch.stack(far).argmin(dim=0)
        everyone = torch.arange(len(x), device=x.device)
        chosen = torch.stack(gradients)[choice, everyone]
        return chosen, torch.stack(leads).detach()[choice, everyone], scene.judge(logits.detach())

    def _leads(self, scene: Scene, logits: Tensor) -> list[Tensor]:
        """Return, for each boundary looked at, how far the wrong side is ahead (N,)."""
        if not isinstance(scene.target.task, Multiclass):
            return [-scene.target.task.margin(logits, scene.labels)]
        mine = logits.gather(1, scene.labels[:, None])
        others = logits.scatter(1, scene.labels[:, None], -torch.inf)
        best = others.topk(min(self.candidates, logits.shape[1] - 1), dim=1).values
        return list((best - mine).unbind(dim=1))

    def _norm(self) -> Norm:
        return self.norm
