"""Provenance: is the finest grain of these pixels what this source writes? Reported, never deciding.

What is left of a scan when its 3 x 3 median is taken away, as in the forensics of cameras (Lukas, Fridrich and Goljan
2006, "Digital camera identification from sensor pattern noise"): how strong it is, how heavy its tails, how it hangs
together with its neighbours, compared with clean scans. It asks no model. Limits: blur, another compression or bit
depth, another scanner are as loud as an attack or louder, which is why no channel may hold it; and an attacker who
keeps his change off the residual, or gives it the clean one's statistics, is not seen: Carlini and Wagner 2017,
arXiv:1705.07263 (on detectors of such statistics).
"""

from typing import Self

import torch
from torch import Tensor

from detectors.covariance import Spread
from detectors.denoisers.median import median3
from detectors.detector import ReportedOnly, Score
from detectors.material import Material
from detectors.observation import LEVEL, Needs, Observation


class NoiseResidual(ReportedOnly):
    """Squared distance of the residual's statistics to those of clean scans, over their number: about 1 when clean."""

    name = "noise_residual"
    version = "1"
    needs = Needs()

    def __init__(self, fitted: Spread) -> None:
        self._fitted = fitted

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Fit on clean scans alone."""
        return cls(Spread.fit(grain(material.clean), torch.zeros(len(material.clean), dtype=torch.int64), 1))

    def score(self, seen: Observation) -> Score:
        """Score each image."""
        nothing = torch.zeros(len(seen.images), dtype=torch.int64, device=seen.images.device)
        return Score(self.name, self._fitted.distance(grain(seen.images), nothing))

    def state(self) -> dict[str, Tensor]:
        """Mean and precision."""
        return self._fitted.state()

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        return cls(Spread(state))


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
