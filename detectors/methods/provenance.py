"""Provenance: are grain and shading of these pixels those that this source writes? Reported, never deciding.

Neither method asks a model; each compares a few statistics of the picture with those of clean scans. Another scanner,
another compression or position is as loud to them as an attack or louder, which is why no channel may hold them.

`noise_residual` reads what is left of a scan when its 3 x 3 median is taken away, as in the forensics of cameras
(Lukas, Fridrich and Goljan 2006, "Digital camera identification from sensor pattern noise"): how strong it is, how
heavy its tails, how it hangs together with its neighbours. Limits: who keeps his change off the residual, or gives it
the clean one's statistics, is not seen: Carlini and Wagner 2017, arXiv:1705.07263 (on detectors of such statistics).

`bias_field` reads how brightness is spread. A field that multiplies a scan smoothly, as a coil or an X-ray tube off its
axis does, misleads a diagnosis outside every L-infinity ball when it is made on purpose: Tian et al. 2021,
arXiv:2009.09247. The estimate is the smooth part of the logarithm of the image, a polynomial of degree 3, by least
squares that trust bright pixels: the model of N4 (Tustison et al. 2010, "N4ITK") without its sharpening of the
histogram, so anatomy is in it too, and only what differs from clean scans counts. Limits: a field of higher degree, or
one as small as those that clean scans have, is not seen; noise-like attacks do not concern it.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from detectors.covariance import Spread
from detectors.denoisers.median import median3
from detectors.detector import ReportedOnly, Score
from detectors.errors import NotFittedError
from detectors.material import Material
from detectors.observation import LEVEL, Needs, Observation

_SIDE, _DEGREE = 32, 3
"""Of the picture to which a field is fitted, and of its polynomial."""


class Provenance(ReportedOnly):
    """Squared distance of a picture's statistics to those of clean scans, over their number: about 1 when clean."""

    version = "1"
    needs = Needs()

    def __init__(self, name: str, statistics: Callable[[Tensor], Tensor], fitted: Spread | None = None) -> None:
        """`statistics`: of images (N, C, H, W), 0 to 1, to (N, D)."""
        self.name = name
        self._statistics, self._fitted = statistics, fitted

    def fit(self, material: Material) -> "Provenance":
        """Fit on clean scans alone."""
        found = self._statistics(material.clean)
        return self._with(Spread.fit(found, _one_class(found), 1))

    def score(self, seen: Observation) -> Score:
        """Score each image.

        Raises:
            NotFittedError: nothing was fitted.
        """
        found = self._statistics(seen.images)
        return Score(self.name, self._known().distance(found, _one_class(found)))

    def state(self) -> dict[str, Tensor]:
        """Mean and precision."""
        return self._known().state()

    def from_state(self, state: dict[str, Tensor]) -> "Provenance":
        """The fitted detector again."""
        return self._with(Spread(state))

    def _with(self, fitted: Spread) -> "Provenance":
        return Provenance(self.name, self._statistics, fitted)

    def _known(self) -> Spread:
        if self._fitted is None:
            raise NotFittedError(self.name)
        return self._fitted


def grain(images: Tensor) -> Tensor:
    """(N, 6) of (N, C, H, W): logarithm of the residual's strength and of its even share, kurtosis, and how it hangs
    together with the pixel beside, below, and two beside."""
    grey = images.mean(1, keepdim=True)
    residual = (grey - median3(grey)) / LEVEL
    power = residual.square().mean((1, 2, 3)) + 1e-4
    shifted = ((0, 1), (1, 0), (0, 2))
    rows, columns = residual.shape[2:]
    along = [
        (residual[..., down:, right:] * residual[..., : rows - down, : columns - right]).mean((1, 2, 3)) / power
        for down, right in shifted
    ]
    even = (residual.abs().mean((1, 2, 3)) + 1e-2).log()
    heavy = (residual.square().square().mean((1, 2, 3)) / power.square() + 1e-4).log()
    return torch.stack([power.log() / 2, even, heavy, *along], 1)


def shading(images: Tensor) -> Tensor:
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


def _one_class(points: Tensor) -> Tensor:
    """(N,) int64: where pixels come from does not hang on what the model decides."""
    return torch.zeros(len(points), dtype=torch.int64, device=points.device)


NOISE_RESIDUAL = Provenance("noise_residual", grain)
BIAS_FIELD = Provenance("bias_field", shading)
