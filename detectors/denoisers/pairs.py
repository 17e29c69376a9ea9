"""Weighted means over pairs of pixels: what the filters share that ask how much two pixels are alike."""

from collections.abc import Callable
from types import EllipsisType

import torch
from torch import Tensor

Place = tuple[EllipsisType, slice, slice]
Alike = Callable[[int, int, Place, Place], Tensor]
"""Rows down, columns to the right, and where the pairs lie that are so far apart: to their weights, (N, 1, h, w)."""


def weighted_mean(images: Tensor, reach: int, alike: Alike) -> Tensor:
    """Replace each pixel by the mean of those at most `reach` rows and columns away.

    Two pixels weigh each other alike, so each pair is looked at once.

    Args:
        images: (N, C, H + 2 reach, W + 2 reach): with the margin that the window needs.
        reach: of the square window, in pixels.
        alike: the weight of two pixels, in units of a pixel's own.

    Returns:
        (N, C, H, W).
    """
    total, weights = images.clone(), torch.ones_like(images[:, :1])
    for i in range(reach + 1):
        for j in range(-reach if i else 1, reach + 1):
            here: Place = (..., slice(None, -i or None), slice(max(0, -j), -max(0, j) or None))
            there: Place = (..., slice(i, None), slice(max(0, j), -max(0, -j) or None))
            weight = alike(i, j, here, there)
            total[here].addcmul_(weight, images[there])
            total[there].addcmul_(weight, images[here])
            weights[here] += weight
            weights[there] += weight
    middle = (..., slice(reach, -reach), slice(reach, -reach))
    return total[middle] / weights[middle]
