"""The sensitive channel: a logistic regression over the twins and the prediction shifts.

Linear, because a linear fusion carries over to attacks that it was not fitted on where trees do not. It must never
decide alone: an informed attacker pays for one feature's alarm with another's calm (docs/results-phantom.md shows the
robust channel beside it).
"""

import math
from typing import Self

import torch
from torch import Tensor

from detectors.detector import Score
from detectors.errors import InputError, NotFittedError
from detectors.material import Material
from detectors.methods.shifts import shift
from detectors.models.outputs import Task, divergence
from detectors.neighbours.defaults import default_neighbours
from detectors.observation import Needs, Observation, Signal
from detectors.regression import logistic

STRENGTH = 0.1
"""Inverse strength of the ridge penalty (the C of logistic regression)."""
BENIGN_WEIGHT = 0.6
OF_TWIN = 4
"""Features of each twin."""


class Fusion:
    """Log-odds that an image was attacked, linear in squashed, standardised features."""

    name = "fusion"
    version = "1"
    needs = Needs(frozenset({Signal.TWINS}), default_neighbours())

    def __init__(self, centre: Tensor, spread: Tensor, weights: Tensor, bias: Tensor) -> None:
        self._centre, self._spread, self._weights, self._bias = centre, spread, weights, bias

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Fit on scans that no twin was trained on: a twin knows its own."""
        groups = (material.clean, material.benign, material.attacked)
        return cls.of(*(features(material.look(group, cls.needs)) for group in groups)).on(material.device)

    @classmethod
    def of(cls, clean: Tensor, benign: Tensor, *attacked: Tensor, rising: bool = False) -> Self:
        """Fit on the features of simulated attacks.

        Args:
            clean: (N, F) features of clean scans, as `features` gives them.
            benign: (M, F) of the same scans after harmless changes.
            attacked: (L, F) of successful attacks; of several kinds, each counts as much as the others.
            rising: whether more evidence of an attack may never lower the score, whatever the attacks say.
        """
        if min(len(clean), *map(len, attacked)) < 2:
            counts = ", ".join(str(len(group)) for group in attacked)
            raise InputError(f"{len(clean)} clean and {counts} attacked scans are too few for a fusion")
        centre = clean.mean(0)
        spread = clean.std(0).clamp_min(1e-6)
        groups = (clean, benign, *attacked)
        shares = (1.0, BENIGN_WEIGHT, *([1.0 / len(attacked)] * len(attacked)))
        inputs = torch.cat([_squash((group - centre) / spread) for group in groups]).double()
        target = torch.cat([torch.full((len(group),), float(k > 1)) for k, group in enumerate(groups)]).double()
        sizes = zip(groups, shares, strict=True)
        importance = torch.cat([torch.full((len(g),), share * len(clean) / max(len(g), 1)) for g, share in sizes])
        signs = towards(inputs.shape[1]) if rising else torch.ones(inputs.shape[1])
        weights = logistic(inputs.cpu() * signs, target, importance.double(), strength=STRENGTH, rising=rising)
        weights = weights.to(clean)
        return cls(centre, spread, weights[:-1] * signs.to(clean), weights[-1:])

    def score(self, seen: Observation) -> Score:
        """Score each image: log-odds, without unit."""
        return Score(self.name, self.odds(features(seen)))

    def odds(self, found: Tensor) -> Tensor:
        """(N,) log-odds from (N, F) features."""
        if found.shape[1] != len(self._weights):
            raise NotFittedError(f"fusion was fitted on {len(self._weights)} features, not {found.shape[1]}")
        return _squash((found - self._centre) / self._spread) @ self._weights + self._bias

    def on(self, device: torch.device) -> Self:
        """The same, where the models lie."""
        return self.from_state({name: value.to(device) for name, value in self.state().items()})

    def state(self) -> dict[str, Tensor]:
        """Centre, spread, weights (F,) and bias (1,)."""
        found = {"centre": self._centre, "spread": self._spread, "weights": self._weights, "bias": self._bias}
        return {name: value.cpu() for name, value in found.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted fusion again."""
        return cls(state["centre"], state["spread"], state["weights"], state["bias"])


def features(seen: Observation) -> Tensor:
    """(N, F): four numbers for each twin, one for each neighbour, in the order of their names.

    A twin's are how firmly it holds the model's decision, how much less firmly than the model, and the Kullback-
    Leibler and Jensen-Shannon divergences from the model's answer to the twin's.
    """
    if not seen.twins:
        raise NotFittedError("fusion needs twins")
    columns: list[Tensor] = []
    for name in sorted(seen.twins):
        theirs = seen.lead_in(seen.twins[name])
        columns += [
            theirs,
            seen.lead - theirs,
            divergence(seen.logits, seen.twins[name], seen.task),
            _spread(seen.logits, seen.twins[name], seen.task),
        ]
    columns += [shift(seen, neighbour.name) for neighbour in sorted(Fusion.needs.neighbours, key=lambda n: n.name)]
    return torch.stack(columns, 1)


def towards(count: int) -> Tensor:
    """(F,) the direction in which each of so many features tells of an attack: -1 where less is more evidence.

    That is how firmly a twin holds the decision, the first of its four; of everything else more is more.
    """
    signs = torch.ones(count)
    signs[: count - len(Fusion.needs.neighbours) : OF_TWIN] = -1.0
    return signs


def _spread(logits: Tensor, others: Tensor, task: Task) -> Tensor:
    """(N,) Jensen-Shannon divergence between two answers."""
    if task is Task.MULTILABEL:  # each label is a choice of two
        logits, others = (torch.stack([-values, values], 1) / 2 for values in (logits, others))
    own, other = torch.log_softmax(logits, 1), torch.log_softmax(others, 1)
    middle = torch.logaddexp(own, other) - math.log(2)
    each = ((own.exp() * (own - middle)).sum(1) + (other.exp() * (other - middle)).sum(1)) / 2
    if task is Task.MULTILABEL:
        return each.sum(1)
    return each.flatten(1).mean(1) if task is Task.SEGMENTATION else each


def _squash(values: Tensor) -> Tensor:
    """Sign and logarithm: far outliers count, but not for ever."""
    return values.sign() * torch.log1p(values.abs())
