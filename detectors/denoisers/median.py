"""The 3 x 3 median, exact, as a network of minima and maxima that runs on any device and has a gradient."""

from functools import reduce
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.denoisers.denoiser import check


def median3(images: Tensor) -> Tensor:
    """The median of each pixel's 3 x 3 neighbourhood; borders repeat.

    The three pixels of each column are sorted once and serve three neighbourhoods; the median of the nine is then that
    of the largest of their smallest, the median of their middle ones, and the smallest of their largest (Paeth 1990,
    "Median finding on a 3 x 3 grid", Graphics Gems).

    Args:
        images: (N, C, H, W).

    Returns:
        (N, C, H, W).
    """
    rows, columns = images.shape[2:]
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    first, second, third = (padded[..., i : i + rows, :] for i in range(3))
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    middle, high = torch.minimum(high, third), torch.maximum(high, third)
    low, middle = torch.minimum(low, middle), torch.maximum(low, middle)

    def three(sorted_columns: Tensor) -> list[Tensor]:
        return [sorted_columns[..., j : j + columns] for j in range(3)]

    return _middle(reduce(torch.maximum, three(low)), _middle(*three(middle)), reduce(torch.minimum, three(high)))


def _middle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The median of three."""
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


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
