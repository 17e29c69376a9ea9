"""KD: how few clean scans of the decided class lie near a scan in the features of the model's last layer.

Feinman et al. 2017, arXiv:1703.00410, as used on medical images by Ma et al. 2021, arXiv:1907.10456: a Gaussian kernel
density on the last hidden layer, over the training scans of the decided class. Ours: features standardised, the
bandwidth by leave-one-out likelihood on clean scans, so no attack is needed. Limits: Carlini and Wagner 2017,
arXiv:1705.07263, and Yao et al. 2021, arXiv:2012.09501 (feature matching), evade it; attacks that overshoot into the
middle of another class look more usual to it than clean scans do. On the small network of its test: AUROC 0.92
at eight grey levels, 0.49 where the loss holds the score.
"""

import math
from typing import Self

import torch
from torch import Tensor

from detectors.covariance import members
from detectors.detector import Score
from detectors.errors import NotFittedError
from detectors.material import Material
from detectors.observation import Needs, Observation, Signal
from detectors.regression import standardised

BANK_MAX = 4096
"""Clean scans that are kept: the file and the time of a score grow with them."""
_WIDTHS = tuple(0.05 * 2**k for k in range(8))
"""Bandwidths that are tried, in units of the root of the number of features."""


class KernelDensity:
    """Minus the log-density of a scan's last features under the kernels of its decided class; nats."""

    name = "kernel_density"
    version = "1"
    needs = Needs(frozenset({Signal.FEATURES}))

    def __init__(self, state: dict[str, Tensor]) -> None:
        if set(state) != {"centre", "spread", "bank", "belongs", "width"}:
            raise NotFittedError(f"{self.name} needs centre, spread, bank, belongs and width")
        self._state = state

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Keep the features of clean scans, and choose the bandwidth under which each is likely given the others."""
        seen = material.look(material.clean[:BANK_MAX], cls.needs)
        features = _last(seen)
        groups = members(seen.groups, seen.group_count)
        centre, spread = standardised(features)
        bank = (features - centre) / spread
        belongs = torch.zeros(len(groups), len(bank), dtype=torch.bool)
        for own, chosen in zip(belongs, groups, strict=True):
            own[chosen] = True
        distances = _squared(bank, bank)
        others = belongs[seen.groups] & ~torch.eye(len(bank), dtype=torch.bool)
        widths = [share * math.sqrt(bank.shape[1]) for share in _WIDTHS]
        best = max(widths, key=lambda width: float(_log_density(distances, others, width, bank.shape[1]).mean()))
        return cls(
            {"centre": centre, "spread": spread, "bank": bank, "belongs": belongs, "width": torch.tensor(best)}
        )  # fmt: skip

    def score(self, seen: Observation) -> Score:
        """Score each image.

        Raises:
            NotFittedError: the observation has no features.
        """
        if not seen.features:
            raise NotFittedError(self.name)
        fit = {name: value.to(seen.images.device) for name, value in self._state.items()}
        features = (_last(seen) - fit["centre"]) / fit["spread"]
        distances = _squared(features, fit["bank"])
        belongs = fit["belongs"][seen.groups]
        return Score(self.name, -_log_density(distances, belongs, float(fit["width"]), features.shape[1]))

    def state(self) -> dict[str, Tensor]:
        """Centre and spread (D,), bank (M, D), which class each of it describes (K, M), and the bandwidth."""
        return {name: value.cpu() for name, value in self._state.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        return cls(state)


def _last(seen: Observation) -> Tensor:
    return list(seen.features.values())[-1]


def _squared(points: Tensor, bank: Tensor) -> Tensor:
    """(N, M) squared distances, without the cancellation of the fast formula."""
    return torch.cdist(points, bank, compute_mode="donot_use_mm_for_euclid_dist").square()


def _log_density(distances: Tensor, belongs: Tensor, width: float, dimension: int) -> Tensor:
    """(N,) log-density from (N, M) squared distances to the members that belong."""
    kernels = (-distances / (2 * width**2)).masked_fill(~belongs, -math.inf)
    return torch.logsumexp(kernels, 1) - belongs.sum(1).log() - dimension * math.log(width)
