"""Projected gradient descent among smooth changes only, which high-pass detectors and denoisers do not see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Best, Found, Loss, Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class LowFrequencyPGD(Method):
    """PGD over a coarse grid of amounts, drawn out bilinearly to the image: nothing finer than the grid can change.

    Guo et al. 2019, arXiv:1809.08758; Sharma et al. 2019, arXiv:1903.00073. Limits: it needs a larger budget than
    PGD, and rounding to few storable values leaves a terrace at each step.
    """

    name: ClassVar[str] = "low-frequency-pgd"
    knowledge: ClassVar[Knowledge] = "gradients"

    steps: int = 40
    restarts: int = 1
    stride: float = 0.1
    grain: int = 8
    """Pixels from one point of the grid to the next."""
    loss: Loss = "margin"
    confidence: float = math.inf
    """An image leaves the batch when it is misread by more."""

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        best = Best(scene)
        amounts = 2 * torch.rand(self._grid(scene.clean), generator=draws, device=scene.clean.device) - 1
        for _ in range(self.steps):
            x, back = smooth(scene, amounts)
            gradient, _, margin = scene.gradient(x, self.loss)
            best.keep(scene, x, margin)
            amounts = (amounts + self.stride * back(gradient).sign()).clamp(-1.0, 1.0)
            going = margin >= -self.confidence
            if not bool(going.all()):
                scene, amounts = scene.only(going), amounts[going]
                if not len(amounts):
                    return best.found()
        x, _ = smooth(scene, amounts)
        best.keep(scene, x, scene.margin(x))
        return best.found()

    def _grid(self, images: Tensor) -> tuple[int, int, int, int]:
        rows, columns = (max(2, math.ceil(side / self.grain)) for side in images.shape[2:])
        return len(images), images.shape[1], rows, columns

    def _starts(self, _classes: int) -> int:
        return self.restarts


class _Back:
    """The way of a gradient from the image back to the grid."""

    def __init__(self, leaf: Tensor, x: Tensor) -> None:
        self._leaf, self._x = leaf, x

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the gradient by the amounts, from that by the image."""
        (found,) = torch.autograd.grad(self._x, self._leaf, gradient)
        return found


def smooth(scene: Scene, amounts: Tensor) -> tuple[Tensor, _Back]:
    """Return points changed by a grid (N, C, h, w) of shares of the radius, -1 to 1, and the way back for gradients."""
    leaf = amounts.detach().requires_grad_(True)
    with torch.enable_grad():
        wide = functional.interpolate(leaf, scene.clean.shape[2:], mode="bilinear", align_corners=True)
        x = scene.clean + scene.radius * wide
    return x.detach(), _Back(leaf, x)
