"""MedRDF: many noisy copies are denoised and asked, and what counts is how many of them the model reads alike.

Xu, Zhang and Zhang 2021, arXiv:2111.14564; the paper's formula of its Robust Metric was not to be had, so here it is
the Clopper-Pearson lower bound of the share of copies that agree. The same with 100 copies and more, with abstention
and a radius inside which the vote is certain (Cohen et al. 2019, arXiv:1902.02918), is `detectors.certificate`, for use
offline. Limits: the score alone certifies nothing. On a small victim of ours AUROC .98 for PGD that just crosses the
boundary and .01 for PGD of twice the budget, which is read alike in every copy (Sharma and Chen 2018,
arXiv:1803.09868); an attacker who averages over draws gets there sooner: Athalye et al. 2018, arXiv:1802.00420.
"""

from typing import Self

import torch
from torch import Tensor

from detectors.detector import Score
from detectors.errors import NotFittedError
from detectors.material import Material
from detectors.neighbours.chained import Chained
from detectors.neighbours.noise import Noise
from detectors.neighbours.squeezing import Wiener
from detectors.observation import Needs, Observation

LEVELS, COPIES, ALPHA = 8.0, 8, 0.001
"""Noise of the detector's copies in grey levels, how many they are, and the error that a bound may have."""
_VOTERS = tuple(Chained(Noise(LEVELS, copy), Wiener(LEVELS)) for copy in range(COPIES))


class RobustMetric:
    """Minus the lower bound of the share of noisy copies on which the model holds its decision, from -1 to 0.

    Each copy votes by how sure the model is of it (a logistic of its lead), so that the score has no ties and a
    gradient; the certificate counts whole votes.
    """

    name = "medrdf"
    version = "1"
    needs = Needs(neighbours=_VOTERS)

    @classmethod
    def fit(cls, _material: Material) -> Self:
        """Itself: nothing is fitted."""
        return cls()

    def score(self, seen: Observation) -> Score:
        """Score each image.

        Raises:
            NotFittedError: the observation lacks a noisy copy.
        """
        if not all(each.name in seen.neighbours for each in _VOTERS):
            raise NotFittedError(self.name)
        votes = torch.stack([torch.sigmoid(seen.lead_in(seen.neighbours[each.name])) for each in _VOTERS]).sum(0)
        bounds = _BOUNDS.to(votes)
        below = votes.detach().floor().long().clamp(max=COPIES - 1)
        return Score(self.name, -torch.lerp(bounds[below], bounds[below + 1], votes - below))

    def state(self) -> dict[str, Tensor]:
        """The noise and the number of copies."""
        return {"levels": torch.tensor(LEVELS), "copies": torch.tensor(COPIES)}

    @classmethod
    def from_state(cls, _state: dict[str, Tensor]) -> Self:
        """Itself again."""
        return cls()


def lower_bounds(trials: int, alpha: float) -> Tensor:
    """(trials + 1,) float64: for k of `trials`, the smallest share that gives k or more with chance `alpha`.

    Clopper and Pearson 1934, one-sided, by bisection of the binomial tail.
    """
    counts = torch.arange(trials + 1, dtype=torch.float64)
    ways = torch.lgamma(torch.tensor(trials + 1.0, dtype=torch.float64)) - torch.lgamma(counts + 1)
    ways = ways - torch.lgamma(trials - counts + 1)
    low, high = torch.zeros(trials, dtype=torch.float64), torch.ones(trials, dtype=torch.float64)
    for _ in range(50):
        share = (low + high) / 2
        each = ways + counts * share.log()[:, None] + (trials - counts) * torch.log1p(-share)[:, None]
        tail = each.exp().flip(1).cumsum(1).flip(1).diagonal(1)  # P[X >= k] at the share that belongs to k = 1, 2, ...
        low, high = torch.where(tail < alpha, share, low), torch.where(tail < alpha, high, share)
    return torch.cat([torch.zeros(1, dtype=torch.float64), low])


_BOUNDS = lower_bounds(COPIES, ALPHA)
