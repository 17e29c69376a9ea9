"""ML-LOO: leave one block out, and see how unevenly the model's outputs change.

Yang et al. 2020, arXiv:1906.03499: for each output of several layers the spread of its leave-one-feature-out
attributions, of which the inter-quartile range serves best; a logistic regression on those of attacked and clean
scans. Here a feature is one of 4 x 4 blocks filled with the image's mean (16 forward passes instead of one for each
pixel), and the outputs are the lead and the pooled features of the last tap. On a small victim of ours AUROC .92 and
.84 for PGD at 3 and 4 grey levels. Limits: fitted on the attacks that were simulated, so stronger ones pass (.46 at 8
levels), and an attacker who puts the spread into his loss takes it away: at 3 levels from .93 to about a half (Tramer
et al. 2020, arXiv:2002.08347, on detectors of its kind).
"""

from typing import Self

import torch
from torch import Tensor

from detectors.detector import Score
from detectors.errors import InputError, NotFittedError
from detectors.material import Material
from detectors.neighbours.occlusion import grid
from detectors.observation import Needs, Observation, Signal
from detectors.regression import logistic

_BLOCKS = grid(4)
_STRENGTH = 0.1
_LIMIT = 5.0
"""Standard deviations at which a spread is cut: an output that never moved on clean scans must not decide alone."""


class LeaveOneOut:
    """Log-odds that an image was attacked, linear in the logarithms of the spreads."""

    name = "ml_loo"
    version = "1"
    needs = Needs(frozenset({Signal.FEATURES, Signal.NEIGHBOUR_FEATURES}), _BLOCKS)

    def __init__(self, centre: Tensor, spread: Tensor, weights: Tensor) -> None:
        self._centre, self._spread, self._weights = centre, spread, weights

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Fit on clean scans and simulated attacks."""
        groups = (material.clean, material.attacked)
        if min(map(len, groups)) < 2:
            raise InputError(f"{len(groups[0])} clean and {len(groups[1])} attacked scans are too few for ml_loo")
        clean, attacked = (spreads(material.look(group, cls.needs)).double() for group in groups)
        centre, spread = clean.mean(0), clean.std(0).clamp_min(1e-3)
        inputs = _standard(torch.cat([clean, attacked]), centre, spread)
        target = torch.cat([torch.zeros(len(clean)), torch.ones(len(attacked))]).double()
        balance = torch.where(target > 0, len(clean) / len(attacked), 1.0)
        weights = logistic(inputs, target, balance, strength=_STRENGTH)
        return cls(*(value.to(material.device) for value in (centre, spread, weights)))

    def score(self, seen: Observation) -> Score:
        """Score each image: log-odds, without unit.

        Raises:
            NotFittedError: the observation lacks a block or its features, or has others than those fitted.
        """
        found = spreads(seen).double()
        if found.shape[1] != len(self._centre):
            raise NotFittedError(f"{self.name} was fitted on {len(self._centre)} outputs, not {found.shape[1]}")
        return Score(self.name, _standard(found, self._centre, self._spread) @ self._weights[:-1] + self._weights[-1])

    def state(self) -> dict[str, Tensor]:
        """Centre and spread (F,), and weights (F + 1,), the bias last."""
        found = {"centre": self._centre, "spread": self._spread, "weights": self._weights}
        return {name: value.cpu() for name, value in found.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        return cls(state["centre"], state["spread"], state["weights"])


def spreads(seen: Observation) -> Tensor:
    """(N, 1 + D): logarithm of the inter-quartile range, over the blocks, of what each takes from the lead and from
    each feature of the last tap."""
    names = [block.name for block in _BLOCKS]
    if not seen.features or not all(name in seen.neighbour_features for name in names):
        raise NotFittedError("ml_loo needs features, with and without each block")
    own = list(seen.features.values())[-1]
    lead = torch.stack([seen.lead - seen.lead_in(seen.neighbours[name]) for name in names])[..., None]
    features = torch.stack([own - seen.neighbour_features[name] for name in names])
    ordered = torch.cat([lead, features], 2).sort(0).values
    quarter = len(names) // 4
    return (ordered[-quarter - 1] - ordered[quarter] + 1e-6).log()


def _standard(values: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
    return ((values - centre) / spread).clamp(-_LIMIT, _LIMIT)
