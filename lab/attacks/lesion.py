"""Tampering with a lesion: one is drawn in, or a place is painted over; what forgers do, without a network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from detectors.filters import gaussian
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Best, Found, Scene

Kind = Literal["insert", "remove"]
DIFFUSIONS = 60
"""Rounds in which surroundings flow into a hole; more change nothing that can be seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LesionTampering(Method):
    """A disc in which a smooth nodule is added, or the content replaced by its surroundings with their grain.

    A stand-in for tampering by generative networks (Mirsky et al. 2019, CT-GAN, arXiv:1901.03597), which deceived
    radiologists. Of random places the one that misleads most is taken. Limits: the seam is plainer than a network's;
    no detector of small changes is made for it, and a signature is what stops it.
    """

    name: ClassVar[str] = "lesion-tampering"
    knowledge: ClassVar[Knowledge] = "scores"
    bounded: ClassVar[bool] = False

    eps: float = math.inf
    kind: Kind = "insert"
    radius: float = 0.12
    """Of the disc, as a share of the shorter side."""
    brightness: float = 48.0
    """Of an inserted nodule's middle, in grey levels."""
    tries: int = 30
    """Places."""

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}: {self}")

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        best = Best(scene)
        for _ in range(self.tries):
            depth = discs(scene.clean, self.radius, draws)
            x = self._inserted(scene, depth) if self.kind == "insert" else painted_over(scene.clean, depth)
            x = scene.whole(x)
            best.keep(scene, x, scene.margin(x))
        return best.found()

    def _inserted(self, scene: Scene, depth: Tensor) -> Tensor:
        bump = depth.clamp_min(0).square() * (3 - 2 * depth.clamp(0, 1))  # flat in the middle, smooth at the rim
        return (scene.clean + self.brightness / 255 * bump).clamp(0.0, scene.high)


def discs(images: Tensor, radius: float, draws: torch.Generator) -> Tensor:
    """Return (N, 1, rows, columns): 1 in the middle of a random disc, 0 at its rim, less outside.

    Raises:
        ValueError: less than two pixels wide, or wider than the image.
    """
    rows, columns = images.shape[2:]
    reach = radius * min(rows, columns)
    if not 1 <= reach <= min(rows, columns) / 2:
        raise ValueError(f"a disc of radius {reach:.1f} pixels is too small, or does not fit")
    centre = torch.rand(2, len(images), 1, 1, 1, generator=draws, device=images.device)
    top, left = (reach + centre[k] * (side - 1 - 2 * reach) for k, side in enumerate((rows, columns)))
    down = torch.arange(rows, device=images.device).view(1, 1, -1, 1)
    across = torch.arange(columns, device=images.device).view(1, 1, 1, -1)
    return 1 - ((down - top).square() + (across - left).square()).sqrt() / reach


def painted_over(images: Tensor, depth: Tensor) -> Tensor:
    """Return images whose discs hold what flows in from around, with the grain of a place beside."""
    inside = depth > 0
    smooth = gaussian(images, 1.5)
    count = (~inside).float().flatten(1).sum(dim=1).view(-1, 1, 1, 1)
    filled = torch.where(inside, (smooth * ~inside).sum(dim=(2, 3), keepdim=True) / count, smooth)
    for _ in range(DIFFUSIONS):
        around = functional.avg_pool2d(functional.pad(filled, (1, 1, 1, 1), mode="replicate"), 3, 1)
        filled = torch.where(inside, around, smooth)
    grain = (images - smooth).roll(images.shape[3] // 3, 3)
    return torch.where(inside, (filled + grain).clamp_min(0), images)
