"""MGM: how unlikely a scan's features are under one Gaussian, that of clean scans of the class that was decided.

Li and Zhu 2020, ISBI, pp. 1154-1158: unsupervised, the protected model untouched, one multivariate Gaussian on the
features of its last layers. Ours, since the text could not be had: one Gaussian a class, its covariance shrunk, on the
block end before the last map. Limits: feature matching hides from it (Yao et al. 2021, arXiv:2012.09501); its rate of
detection at 1 % false positives is far below what its AUROC suggests. On the small network of its test: AUROC 1.00 at
eight grey levels, 0.37 where the loss holds the score.
"""

from typing import Self

import torch
from torch import Tensor

from detectors.covariance import members, shrunk, whitener
from detectors.detector import Score, read_name, spelled
from detectors.errors import NotFittedError
from detectors.material import Material
from detectors.observation import Needs, Observation, Signal

_FROM_THE_END = 3
"""Before the last map and its mean: late enough to speak of classes, early enough to show what an attack does."""


class ClassGaussian:
    """Minus the log-density of a scan's features under the Gaussian of its decided class, up to a constant."""

    name = "mgm"
    version = "1"
    needs = Needs(frozenset({Signal.FEATURES}))

    def __init__(self, state: dict[str, Tensor]) -> None:
        if set(state) != {"tap", "means", "whiteners", "log_dets"}:
            raise NotFittedError(f"{self.name} needs a tap, means, whiteners and log_dets")
        self._state = state
        self._tap = read_name(state["tap"])

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Fit on clean scans; a class with fewer than 20 is described by all."""
        seen = material.look(material.clean, cls.needs)
        tap = list(seen.features)[-_FROM_THE_END:][0]
        features = seen.features[tap].double()
        groups = [features[chosen] for chosen in members(seen.groups, seen.group_count)]
        means = [group.mean(0) for group in groups]
        bases = [whitener(shrunk(group - mean)) for group, mean in zip(groups, means, strict=True)]
        return cls(
            {
                "tap": spelled(tap),
                "means": torch.stack(means).float(),
                "whiteners": torch.stack([basis for basis, _ in bases]).float(),
                "log_dets": torch.stack([log_det for _, log_det in bases]).float(),
            }
        )

    def score(self, seen: Observation) -> Score:
        """Score each image: nats.

        Raises:
            NotFittedError: the observation lacks the tap.
        """
        seen.require_features([self._tap])
        features = seen.features[self._tap]
        fit = {name: value.to(features.device) for name, value in self._state.items()}
        parts = zip(fit["means"], fit["whiteners"], fit["log_dets"], strict=True)
        each = torch.stack([((features - mean) @ basis).square().sum(1) + log_det for mean, basis, log_det in parts], 1)
        return Score(self.name, each.gather(1, seen.groups[:, None])[:, 0] / 2)

    def state(self) -> dict[str, Tensor]:
        """The tap's name, means (K, D), whiteners (K, D, D) and log-determinants (K,)."""
        return {name: value.cpu() for name, value in self._state.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        return cls(state)
