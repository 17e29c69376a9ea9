"""Momentum iterations up a smoothed gradient, which climb what neighbouring models and shifted images share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from detectors.filters import along, gaussian_kernel
from lab.attacks.attack import Target
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Best, Found, Loss, Scene
from lab.attacks.tasks import Segmentation

_NOTHING = 1e-30
_SMALLEST = 0.9
"""Least side of a shrunken image, as a share of the whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MomentumPGD(Method):
    """Signed steps from the image itself along gradients that are smoothed, normalised and summed up.

    Dong et al. 2018, arXiv:1710.06081 (momentum: `kernel=0` is theirs); Dong et al. 2019, arXiv:1904.02884 (smoothing
    by a Gaussian stands for an attack on all shifts of the image at once); Xie et al. 2019, arXiv:1803.06978 (input
    diversity). Made to transfer; here it matters because its changes are smooth, and follow no one gradient, so that
    detectors of fine detail and of the model's own gradient see less of them. Limits: on the model itself it succeeds
    less often than PGD at the same budget, and it knows nothing of a detector.
    """

    name: ClassVar[str] = "momentum-pgd"
    knowledge: ClassVar[Knowledge] = "gradients"
    free: ClassVar[frozenset[str]] = frozenset({"momentum", "kernel", "diversity"})

    steps: int = 20
    stride: float = 0.15
    """Length of a step, as a share of the budget."""
    momentum: float = 1.0
    """What is kept of the sum of earlier gradients at each step; 0 keeps nothing."""
    kernel: int = 7
    """Pixels across the Gaussian that smooths a gradient, an odd number; 0 leaves it as it is."""
    diversity: float = 0.0
    """Chance of a step that looks at the images shrunken, at a place that is drawn; not for masks, which stay."""
    loss: Loss = "margin"

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if self.momentum < 0:
            raise ValueError(f"momentum must not be below 0: {self}")
        if self.kernel < 0 or (self.kernel and self.kernel % 2 == 0):
            raise ValueError(f"kernel must be 0 or an odd number: {self}")
        if not 0 <= self.diversity <= 1:
            raise ValueError(f"diversity must be a chance, 0 to 1: {self}")

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        best = Best(scene)
        x, total = scene.clean, torch.zeros_like(scene.clean)
        for _ in range(self.steps):
            seen = self._seen(scene, draws)
            gradient, _, margin = seen.gradient(x, self.loss)
            best.keep(scene, x, margin if seen is scene else scene.margin(x))
            total = self.momentum * total + evened(smoothed(gradient, self.kernel))
            x = scene.step(x, total, self.stride * scene.radius)
        best.keep(scene, x, scene.margin(x))
        return best.found()

    def _seen(self, scene: Scene, draws: torch.Generator) -> Scene:
        """Return the scene as it is, or by chance one in which the images are shrunken on the way to the model."""
        if not self.diversity or float(torch.rand((), generator=draws, device=draws.device)) >= self.diversity:
            return scene
        target, shares = scene.target, torch.rand(3, generator=draws, device=draws.device).tolist()
        return replace(scene, target=replace(target, view=lambda x: target.view(shrunken(x, shares, target.low))))

    def _scene(self, target: Target, images: Tensor, labels: Tensor, start: int) -> Scene:
        if self.diversity and isinstance(target.task, Segmentation):
            raise ValueError("diversity moves the images and not their masks: not for segmentation")
        return Method._scene(self, target, images, labels, start)


def smoothed(gradient: Tensor, kernel: int) -> Tensor:
    """Return a gradient (N, C, rows, columns) smoothed by a Gaussian `kernel` pixels across; beyond the edge lies 0.

    The standard deviation is the radius over the root of 3, as Dong et al. 2019 set it.
    """
    radius = kernel // 2
    if not radius:
        return gradient
    weights = gaussian_kernel(radius / math.sqrt(3), radius)
    return along(along(functional.pad(gradient, (radius,) * 4), 2, weights), 3, weights)


def evened(gradient: Tensor) -> Tensor:
    """Return gradients (N, C, rows, columns) whose values add up to 1, signs aside, so that each step weighs alike."""
    return gradient / gradient.abs().sum(dim=(1, 2, 3), keepdim=True).clamp_min(_NOTHING)


def shrunken(images: Tensor, shares: list[float], blank: float) -> Tensor:
    """Return images (N, C, rows, columns) shrunken inside a blank frame of the same size; differentiable.

    Args:
        images: stored values.
        shares: 0 to 1 each: how much is left of what may be lost; from top and left, where the images lie.
        blank: the value around them.
    """
    size = images.shape[2:]
    rows, columns = (math.ceil(side * (_SMALLEST + (1 - _SMALLEST) * shares[0])) for side in size)
    top, left = int(shares[1] * (size[0] - rows + 1)), int(shares[2] * (size[1] - columns + 1))
    small = functional.interpolate(images, (rows, columns), mode="bilinear", align_corners=False)
    around = (left, size[1] - columns - left, top, size[0] - rows - top)
    return functional.pad(small, around, value=blank)
