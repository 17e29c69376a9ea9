"""The 3 x 3 median, exact, as a network of minima and maxima that runs on any device and has a gradient."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.denoisers.denoiser import check

# Smith 1996, "Implementing median filters in XC4000E FPGAs": 19 exchanges leave the median of nine in place 4.
_EXCHANGES = (
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3),
    (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip


def median3(images: Tensor) -> Tensor:
    """The median of each pixel's 3 x 3 neighbourhood; borders repeat.

    Args:
        images: (N, C, H, W).

    Returns:
        (N, C, H, W).
    """
    rows, columns = images.shape[2:]
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    values = [padded[..., i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
    for small, large in _EXCHANGES:
        values[small], values[large] = (
            torch.minimum(values[small], values[large]),
            torch.maximum(values[small], values[large]),
        )
    return values[4]


class Median:
    """Removes what is one pixel wide. Limits: an attacker who knows of it attacks through it; it is a subgradient."""

    name = "median"
    version = "1"
    surrogate = None

    def __call__(self, images: Tensor) -> Tensor:
        """Filter (N, C, H, W) images, of any units and any number of channels."""
        check(images)
        return median3(images)

    def state(self) -> dict[str, Tensor]:
        """Nothing is fitted."""
        return {}

    @classmethod
    def from_state(cls, _state: dict[str, Tensor]) -> Self:
        """The same filter, always."""
        return cls()
