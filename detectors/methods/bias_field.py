"""Provenance: is the brightness spread over the picture as this source spreads it? Reported, never deciding.

A bias field multiplies a scan smoothly, as a coil or an X-ray tube off its axis does; made on purpose it misleads a
diagnosis outside every L-infinity ball: Tian et al. 2021, arXiv:2009.09247. The estimate is the smooth part of the
logarithm of the image, a polynomial of degree 3, by least squares that trust bright pixels: the model of N4 (Tustison
et al. 2010, "N4ITK") without its sharpening of the histogram, so anatomy is in it too, and only what differs from
clean scans counts. Limits: repositioning and another scanner are as loud as an attack, which is why no channel may
hold it; a field of higher degree, or one as small as those that clean scans have, is not seen, and an attacker who
bounds its smoothest terms passes; noise-like attacks do not concern it.
"""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.covariance import Spread
from detectors.detector import ReportedOnly, Score
from detectors.material import Material
from detectors.observation import LEVEL, Needs, Observation

_SIDE, _DEGREE = 32, 3


class BiasField(ReportedOnly):
    """Squared distance of the smooth part's coefficients to clean scans', over their number: about 1 when clean."""

    name = "bias_field"
    version = "1"
    needs = Needs()

    def __init__(self, fitted: Spread) -> None:
        self._fitted = fitted

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Fit on clean scans alone."""
        return cls(Spread.fit(smooth_part(material.clean), torch.zeros(len(material.clean), dtype=torch.int64), 1))

    def score(self, seen: Observation) -> Score:
        """Score each image."""
        nothing = torch.zeros(len(seen.images), dtype=torch.int64, device=seen.images.device)
        return Score(self.name, self._fitted.distance(smooth_part(seen.images), nothing))

    def state(self) -> dict[str, Tensor]:
        """Mean and precision."""
        return self._fitted.state()

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        return cls(Spread(state))


def smooth_part(images: Tensor) -> Tensor:
    """(N, 9) of (N, C, H, W): coefficients of the non-constant polynomials up to degree 3 in the log image."""
    grey = functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), _SIDE).flatten(1).double().clamp_min(0)
    trust = grey / (grey + 16 * LEVEL)  # the logarithm of what is nearly black says nothing
    terms = _polynomials(images.device)
    weighted = terms * trust[:, :, None]
    normal = weighted.transpose(1, 2) @ terms + 1e-3 * torch.eye(terms.shape[1]).to(weighted)
    found: Tensor = torch.linalg.solve(normal, weighted.transpose(1, 2) @ (grey + LEVEL).log()[:, :, None])
    return found[:, 1:, 0]


def _polynomials(device: torch.device) -> Tensor:
    """(1024, 10) float64: products of Legendre polynomials over rows and columns, the constant first."""
    places = torch.linspace(-1, 1, _SIDE, dtype=torch.float64, device=device)
    one = [torch.ones_like(places), places, (3 * places**2 - 1) / 2, (5 * places**3 - 3 * places) / 2]
    pairs = [(i, j) for total in range(_DEGREE + 1) for i in range(total + 1) for j in [total - i]]
    return torch.stack([torch.outer(one[i], one[j]).flatten() for i, j in pairs], 1)
