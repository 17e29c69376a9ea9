"""How clean features of a class spread: shrunk covariances, and which scans describe a class that has few."""

import torch
from torch import Tensor

from detectors.errors import InputError

FEWEST = 20
"""Clean scans without which no class is described by its own."""


def members(groups: Tensor, count: int) -> list[Tensor]:
    """For each class, which clean scans describe it: its own, or all where they are fewer than `FEWEST`.

    Args:
        groups: (N,) int64, as `Observation.groups`.
        count: number of classes.

    Raises:
        InputError: fewer than `FEWEST` scans in all.
    """
    if len(groups) < FEWEST:
        raise InputError(f"{len(groups)} clean scans are too few to describe features; at least {FEWEST} are needed")
    everyone = torch.arange(len(groups))
    own = [everyone[groups == each] for each in range(count)]
    return [one if len(one) >= FEWEST else everyone for one in own]


def shrunk(offsets: Tensor) -> Tensor:
    """Covariance of (N, D) offsets from their mean, drawn towards a sphere as far as N is small for D.

    Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".

    Returns:
        (D, D) float64, positive definite.
    """
    offsets = offsets.double()
    n, d = offsets.shape
    sample = offsets.T @ offsets / n
    eye = torch.eye(d, dtype=sample.dtype)
    sphere = sample.trace() / d
    distance = (sample - sphere * eye).square().sum()
    noise = ((offsets.square().sum(1).square().sum() / n) - sample.square().sum()) / n
    share = float((noise / distance.clamp_min(1e-300)).clamp(0, 1)) if float(distance) > 0 else 1.0
    return (1 - share) * sample + (share * sphere + 1e-6 * sphere + 1e-12) * eye


def whitener(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """What turns the distance that a covariance gives into a plain one.

    Returns:
        (D, D) W, so that |x W|^2 is the squared Mahalanobis length of x; and the logarithm of the determinant.
    """
    sizes, axes = torch.linalg.eigh(covariance)
    sizes = sizes.clamp_min(torch.finfo(sizes.dtype).tiny)
    return (axes / sizes.sqrt()).contiguous(), sizes.log().sum()
