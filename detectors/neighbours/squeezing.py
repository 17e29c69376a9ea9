"""Fewer grey levels, or fewer details, than the image has: the squeezers.

Xu, Evans and Qi 2018, arXiv:1704.01155 (feature squeezing); broken by an attacker who puts them into his loss: He et
al. 2017, arXiv:1706.04701.
"""

import torch
from torch import Tensor

from detectors.denoisers.median import median3
from detectors.filters import gaussian, wiener3
from detectors.observation import LEVEL


class BitDepth:
    """So many evenly spaced grey levels over the window; backwards the identity (straight-through)."""

    surrogate = "identity"
    random = False

    def __init__(self, bits: int) -> None:
        """`bits`: from 1 to 16."""
        assert 1 <= bits <= 16
        self.name = f"bits{bits}"
        self._steps = (1 << bits) - 1

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Round (N, C, H, W) images; the gradient passes unchanged."""
        with torch.no_grad():
            rounded = torch.round(images * self._steps) / self._steps
        return images + (rounded - images).detach()


class MedianShift:
    """The exact 3 x 3 median."""

    name = "median3"
    surrogate = None
    random = False

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Filter (N, C, H, W) images."""
        return median3(images)


class LowPass:
    """A Gaussian blur."""

    surrogate = None
    random = False

    def __init__(self, sigma: float) -> None:
        """`sigma`: in pixels."""
        assert sigma > 0
        self.name = f"lowpass{spelled_number(sigma)}"
        self._sigma = sigma

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Blur (N, C, H, W) images."""
        return gaussian(images, self._sigma)


class Wiener:
    """The local Wiener filter over 3 x 3 pixels: smooth where the picture varies no more than noise would."""

    surrogate = None
    random = False

    def __init__(self, levels: float) -> None:
        """`levels`: standard deviation of that noise, in grey levels."""
        assert levels > 0
        self.name = f"wiener{spelled_number(levels)}"
        self._noise = levels * LEVEL

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Filter (N, C, H, W) images."""
        return wiener3(images, self._noise)


def spelled_number(value: float) -> str:
    """A number as part of a name that is also a file's: 0.5 is 0_5."""
    return f"{value:g}".replace(".", "_")
