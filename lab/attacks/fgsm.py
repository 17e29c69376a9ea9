"""The fast gradient sign method: one step, the cheapest attack there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Found, Loss, Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class FGSM(Method):
    """One sign step of the whole budget up the loss, from the image itself.

    Goodfellow et al. 2015, arXiv:1412.6572. Limits: it overshoots where the loss bends, and so understates what an
    attacker can do; it is here since detectors must also see crude attacks.
    """

    name: ClassVar[str] = "fgsm"
    knowledge: ClassVar[Knowledge] = "gradients"

    loss: Loss = "ce"

    def _search(self, scene: Scene, _start: int, _draws: torch.Generator) -> Found:
        gradient, _, _ = scene.gradient(scene.clean, self.loss)
        x = scene.whole(scene.step(scene.clean, gradient, scene.radius))
        return Found(x, scene.margin(x))
