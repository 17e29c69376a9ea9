"""Randomly moved and brightened copies, as networks learn to see past, drawn from each image's own seed."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from detectors.errors import InputError
from detectors.observation import Neighbour
from detectors.randomness import stream, uniform

_DEGREES, _ZOOM, _SHIFT, _GAIN = 5.0, 0.05, 0.03, 0.05
"""Largest turn; change of size; shift as a share of the image; change of brightness."""


class Augmented:
    """A small turn, zoom, shift and gain together, bilinear, borders repeated."""

    surrogate = None
    random = True

    def __init__(self, copy: int) -> None:
        """`copy`: which of the copies, from 0; each draws independently from the same seed."""
        assert copy >= 0
        self.name = f"augmented_{copy}"

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Change (N, C, H, W) images; raises `InputError` without their seeds (N,)."""
        if seeds is None:
            raise InputError(f"{self.name} needs seeds")
        n, _, rows, columns = images.shape
        draws = (2 * uniform(seeds, (5,), stream(self.name)) - 1).to(images.dtype)
        angle, zoom = draws[:, 0] * math.radians(_DEGREES), 1 + draws[:, 1] * _ZOOM
        cosine, sine = torch.cos(angle) * zoom, torch.sin(angle) * zoom
        # affine_grid speaks in units of half the width and half the height: a true turn of an oblong needs the ratio
        across = torch.stack([cosine, -sine * rows / columns, 2 * _SHIFT * draws[:, 2]], 1)
        down = torch.stack([sine * columns / rows, cosine, 2 * _SHIFT * draws[:, 3]], 1)
        grid = functional.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
        moved = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
        return torch.clamp(moved * (1 + _GAIN * draws[:, 4]).view(n, 1, 1, 1), 0, 1)


def augmented(copies: int) -> tuple[Neighbour, ...]:
    """That many different copies."""
    return tuple(Augmented(copy) for copy in range(copies))
