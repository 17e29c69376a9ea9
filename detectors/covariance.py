"""How clean features of a class spread: shrunk covariances, and which scans describe a class that has few."""

from typing import Self

import torch
from torch import Tensor

from detectors.errors import InputError, NotFittedError

FEWEST = 20
"""Clean scans without which no class is described by its own."""
_LEAST = 0.01
"""Of the shrinkage where a distance is taken: numbers that say the same twice would magnify rounding."""


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


class Spread:
    """How far numbers of different kinds lie from the clean ones of their class, each in its own unit of spread."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        """`state` as `state()` gives it: means (C, D) and precisions (C, D, D), float64."""
        if set(state) != {"means", "precisions"}:
            raise NotFittedError("a distance needs means and precisions")
        self._means, self._precisions = state["means"], state["precisions"]

    @classmethod
    def fit(cls, points: Tensor, groups: Tensor, count: int) -> Self:
        """Fit on clean scans.

        Args:
            points: (N, D), N at least `FEWEST`.
            groups: (N,) int64, as `Observation.groups`.
            count: number of classes.
        """
        fitted = [_moments(points[chosen].double()) for chosen in members(groups, count)]
        return cls({"means": torch.stack([m for m, _ in fitted]), "precisions": torch.stack([p for _, p in fitted])})

    def distance(self, points: Tensor, groups: Tensor) -> Tensor:
        """(N,) float64 squared distance of (N, D) points, each to its class (N,), over the number of dimensions."""
        means, precisions = (value.to(points.device) for value in (self._means, self._precisions))
        offsets = points.double() - means[groups]
        return torch.einsum("nd,nde,ne->n", offsets, precisions[groups], offsets) / points.shape[1]

    def state(self) -> dict[str, Tensor]:
        """Means and precisions."""
        return {"means": self._means.cpu(), "precisions": self._precisions.cpu()}


def _moments(points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and precision (D, D), shrunk in units in which every dimension has spread 1."""
    mean, spread = points.mean(0), points.std(0).clamp_min(1e-6)
    covariance = shrunk((points - mean) / spread)
    covariance = covariance.lerp(torch.eye(len(mean), dtype=covariance.dtype), _LEAST)
    precision = torch.linalg.inv(covariance)
    return mean, precision / spread[:, None] / spread[None, :]
