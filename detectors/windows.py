"""Random windows of images: what looks at details learns as much from a part of a scan as from the whole, for less."""

from types import EllipsisType

import torch
from torch import Tensor

Window = tuple[EllipsisType, slice, slice]
"""An index into (…, H, W)."""


def window(images: Tensor, side: int, generator: torch.Generator) -> Window:
    """The place of a window of (N, C, H, W) images, the same for the whole batch; a shorter side is taken whole."""
    height, width = (min(side, length) for length in images.shape[2:])
    top = int(torch.randint(images.shape[2] - height + 1, (1,), generator=generator))
    left = int(torch.randint(images.shape[3] - width + 1, (1,), generator=generator))
    return ..., slice(top, top + height), slice(left, left + width)
