"""Mahalanobis by layer: how far a scan's features lie from the nearest class, summed over taps from the input on.

Lee et al. 2018, arXiv:1807.03888: at every layer one mean a class and one covariance for all, the distance to the
nearest class. Ours: covariances shrunk, each layer's distance in units of its spread on other clean scans, and a plain
sum in place of weights learned on attacks. The paper's change of the input along the score's gradient is left out: it
would cost a backward pass of its own. Limits: a joint loss or feature matching takes it to chance and below (Yao et al.
2021, arXiv:2012.09501; Tramer et al. 2020, arXiv:2002.08347); it reacts to another scanner as it does to an attack.
On the small network of its test: AUROC 1.00 at eight grey levels, 0.50 where the loss holds the score, and 1.00 on mere
sign noise of four levels.
"""

from typing import Self

import torch
from torch import Tensor

from detectors.covariance import FEWEST, members, shrunk, whitener
from detectors.detector import Score, read_name, spelled
from detectors.errors import InputError, NotFittedError
from detectors.material import Material
from detectors.observation import Needs, Observation, Signal


class LayerDistances:
    """The sum over taps of the standardised squared distance to the nearest class; without unit."""

    name = "mahalanobis"
    version = "1"
    needs = Needs(frozenset({Signal.FEATURES}))

    def __init__(self, state: dict[str, Tensor]) -> None:
        if "taps" not in state:
            raise NotFittedError(f"{self.name} needs the names of its taps")
        self._taps = read_name(state["taps"]).split("\n")
        wanted = {f"{part}{k}" for k in range(len(self._taps)) for part in ("means", "whitener", "usual")}
        if set(state) != wanted | {"taps"}:
            raise NotFittedError(f"{self.name} needs means, whitener and usual distance of each of its taps")
        self._state = state

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Fit means and covariances on every second clean scan, and the usual distance on the others."""
        if len(material.clean) < 2 * FEWEST:
            raise InputError(f"{len(material.clean)} clean scans are too few for {cls.name}; {2 * FEWEST} are needed")
        seen = material.look(material.clean, cls.needs)
        chosen = members(seen.groups[::2], seen.group_count)
        state = {"taps": spelled("\n".join(seen.features))}
        for k, values in enumerate(seen.features.values()):
            features = values[::2].double()
            means = torch.stack([features[group].mean(0) for group in chosen])
            basis, _ = whitener(shrunk(features - means[seen.groups[::2]]))
            usual = _nearest(values[1::2].double(), means, basis)
            state |= {
                f"means{k}": means.float(),
                f"whitener{k}": basis.float(),
                f"usual{k}": torch.stack([usual.mean(), usual.std().clamp_min(1e-6)]).float(),
            }
        return cls(state)

    def score(self, seen: Observation) -> Score:
        """Score each image.

        Raises:
            NotFittedError: the observation lacks a tap.
        """
        seen.require_features(self._taps)
        return Score(self.name, self.by_layer(seen).sum(1))

    def by_layer(self, seen: Observation) -> Tensor:
        """(N, L) the standardised distance at each tap, in the order of the taps."""
        fit = {name: value.to(seen.images.device) for name, value in self._state.items()}
        columns = []
        for k, tap in enumerate(self._taps):
            distance = _nearest(seen.features[tap], fit[f"means{k}"], fit[f"whitener{k}"])
            columns.append((distance - fit[f"usual{k}"][0]) / fit[f"usual{k}"][1])
        return torch.stack(columns, 1)

    def state(self) -> dict[str, Tensor]:
        """The taps' names; for each, means (K, D), a whitener (D, D), and mean and deviation of the usual distance."""
        return {name: value.cpu() for name, value in self._state.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        return cls(state)


def _nearest(features: Tensor, means: Tensor, basis: Tensor) -> Tensor:
    """(N,) squared distance of (N, D) features to the nearest of (K, D) means."""
    return torch.stack([((features - mean) @ basis).square().sum(1) for mean in means], 1).amin(1)
