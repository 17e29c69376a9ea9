"""An adversarial patch: a small square that may hold anything at all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Best, Found, Loss, Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch(Method):
    """A visible square of free content, in a random place of each image.

    Brown et al. 2017, arXiv:1712.09665; an image's own patch as in LaVAN, Karmon et al. 2018, arXiv:1801.02608. Limits:
    people see it, as they see a marker or a pacemaker; detectors of small changes may not.
    """

    name: ClassVar[str] = "patch"
    knowledge: ClassVar[Knowledge] = "gradients"
    bounded: ClassVar[bool] = False

    eps: float = math.inf
    share: float = 0.02
    """Of the image's area."""
    steps: int = 60
    restarts: int = 1
    """Places tried."""
    stride: float = 0.05
    """Length of a step, as a share of the window."""
    shared: bool = False
    """One patch for all images of a batch, so that it may be printed beforehand; else one each."""
    loss: Loss = "margin"
    confidence: float = math.inf
    """An image leaves the batch when it is misread by more; none does where the patch is shared."""

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        best = Best(scene)
        where = placed(scene.clean, self.share, draws).expand_as(scene.clean)
        black = (scene.target.black - scene.target.low) / scene.target.unit
        count, area = (1 if self.shared else len(where)), int(where[0].sum())
        content = black + torch.rand(count, area, generator=draws, device=where.device)
        for _ in range(self.steps):
            x = _painted(scene.clean, where, content)
            gradient, _, margin = scene.gradient(x, self.loss)
            best.keep(scene, x, margin)
            uphill = gradient[where].view(-1, area)
            if self.shared:
                uphill = uphill.sum(dim=0, keepdim=True)
            content = (content + self.stride * uphill.sign()).clamp(0.0, scene.high)
            going = margin >= -self.confidence
            if not self.shared and not bool(going.all()):
                scene, where, content = scene.only(going), where[going], content[going]
                if not len(content):
                    return best.found()
        x = _painted(scene.clean, where, content)
        best.keep(scene, x, scene.margin(x))
        return best.found()

    def _starts(self, _classes: int) -> int:
        return self.restarts


def _painted(images: Tensor, where: Tensor, content: Tensor) -> Tensor:
    """Return images whose squares hold the content, (1 or N, values of a square)."""
    x = images.clone()
    x[where] = content.expand(len(images), -1).reshape(-1)
    return x


def placed(images: Tensor, share: float, draws: torch.Generator) -> Tensor:
    """Return (N, 1, rows, columns) bool: a square of a share of the area, in a random place of each image.

    Raises:
        ValueError: less than one pixel.
    """
    rows, columns = images.shape[2:]
    side = math.floor(math.sqrt(share * rows * columns))
    if not 1 <= side <= min(rows, columns):
        raise ValueError(f"a square of {share:g} of {rows} x {columns} pixels is none, or does not fit")
    top = torch.randint(rows - side + 1, (len(images), 1, 1, 1), generator=draws, device=images.device)
    left = torch.randint(columns - side + 1, (len(images), 1, 1, 1), generator=draws, device=images.device)
    down = torch.arange(rows, device=images.device).view(1, 1, -1, 1)
    across = torch.arange(columns, device=images.device).view(1, 1, 1, -1)
    return (down >= top) & (down < top + side) & (across >= left) & (across < left + side)
