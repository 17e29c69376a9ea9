"""Neighbourhood: whether randomly changed copies of a scan keep its decision and its place among the features.

He et al. 2022, arXiv:2209.00005 (BEYOND): of many augmented neighbours, count those with the image's label and take the
cosine between their representations and the image's; either falling out of the clean range betrays an attack. Ours: the
representation is the protected model's own last features, not those of a self-supervised encoder, so both numbers come
from the shared pass; the count is softened to a mean lead so that the score has a gradient; eight copies, not fifty.
Limits: the authors' claim against informed attackers rests on the second encoder, which is not here; an attacker who
averages his gradient over the copies (Athalye et al. 2018, arXiv:1802.00420) evades it. On the small network of its
test it sees attacks that stop just behind the border (AUROC 1.00 at two grey levels) and not those that go on: 0.64 at
four, 0.53 at eight, against the paper's claim.
"""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from detectors.covariance import FEWEST
from detectors.detector import Score
from detectors.errors import InputError, NotFittedError
from detectors.material import Material
from detectors.neighbours.augmented import augmented
from detectors.observation import Needs, Observation, Signal

COPIES = 8


class Neighbourhood:
    """The louder of two voices, decision and representation, each in deviations from clean scans."""

    name = "neighbourhood"
    version = "1"
    needs = Needs(frozenset({Signal.FEATURES, Signal.NEIGHBOUR_FEATURES}), augmented(COPIES))

    def __init__(self, state: dict[str, Tensor]) -> None:
        if set(state) != {"centre", "spread"}:
            raise NotFittedError(f"{self.name} needs centre and spread")
        self._state = state

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Find where clean scans lie, and how far from there they stray upwards."""
        if len(material.clean) < FEWEST:
            raise InputError(f"{len(material.clean)} clean scans are too few for {cls.name}; {FEWEST} are needed")
        voices = _voices(material.look(material.clean, cls.needs))
        centre = voices.quantile(0.5, 0)
        return cls({"centre": centre, "spread": (voices.quantile(0.95, 0) - centre).clamp_min(1e-6)})

    def score(self, seen: Observation) -> Score:
        """Score each image.

        Raises:
            NotFittedError: the observation lacks features or a neighbour.
        """
        names = {neighbour.name for neighbour in self.needs.neighbours}
        if not seen.features or not names <= set(seen.neighbour_features):
            raise NotFittedError(f"{self.name} reads the features of {COPIES} augmented copies")
        fit = {name: value.to(seen.images.device) for name, value in self._state.items()}
        return Score(self.name, ((_voices(seen) - fit["centre"]) / fit["spread"]).amax(1))

    def state(self) -> dict[str, Tensor]:
        """Centre and spread (2,)."""
        return {name: value.cpu() for name, value in self._state.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        return cls(state)


def _voices(seen: Observation) -> Tensor:
    """(N, 2): minus the mean lead of the decision in the copies; one minus the mean cosine to their features."""
    names = [neighbour.name for neighbour in Neighbourhood.needs.neighbours]
    own = list(seen.features.values())[-1]
    leads = torch.stack([seen.lead_in(seen.neighbours[name]) for name in names])
    cosines = torch.stack([functional.cosine_similarity(own, seen.neighbour_features[name], dim=1) for name in names])
    return torch.stack([-leads.mean(0), 1 - cosines.mean(0)], 1)
