"""UAD: how unlikely a scan's features are among those of clean scans of the class that was predicted.

Li, Pan and Zhu 2021, arXiv:2006.13555 (unsupervised adversarial detection; on the features of the hardened model);
Li and Zhu 2020 (ISBI, pp. 1154-1158) is the case of one Gaussian. Details not in the text we could read are ours:
standardise, PCA to 99 % of the variance, one mixture a class with its number of components by BIC. Limits: feature
matching takes it to chance (Yao et al. 2021, arXiv:2012.09501); weak at 1 % false positives, so it is reported only. On
the small network of its test: AUROC 0.96 at eight grey levels, 0.37 where the loss holds the score.
"""

import math
from typing import Self

import torch
from torch import Tensor

from detectors.covariance import members
from detectors.detector import Score
from detectors.errors import InputError, NotFittedError
from detectors.material import Material
from detectors.methods.twins import COPIED_TWIN, SMALL_TWIN
from detectors.observation import Needs, Observation, Signal

_VARIANCE_KEPT, _COMPONENTS, _SHRINKAGE, _ROUNDS = 0.99, 3, 0.1, 50
TWINS = (COPIED_TWIN, SMALL_TWIN)
"""The hardened models whose features may be read, the best first: a model that only answers has no copy."""


class FeatureDensity:
    """Minus the log-density of a scan's features under the mixture of its predicted class."""

    name = "uad"
    version = "1"
    needs = Needs(frozenset({Signal.TWINS}))

    def __init__(self, state: dict[str, Tensor]) -> None:
        wanted = {"centre", "spread", "axes", "weights", "means", "precisions", "log_dets"}
        if set(state) != wanted:
            raise NotFittedError(f"uad needs {sorted(wanted)}")
        self._state = state

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Fit on the hardened features of clean scans."""
        seen = material.look(material.clean, cls.needs)
        features = _hardened(seen)
        if features is None:
            raise InputError(f"{cls.name} needs the features of a hardened twin")
        return cls.of(features, seen.groups, seen.group_count)

    @classmethod
    def of(cls, features: Tensor, classes: Tensor, count: int) -> Self:
        """Fit on features.

        Args:
            features: (N, D) of the hardened model, N at least 20.
            classes: (N,) int64 as the protected model decided.
            count: number of classes; one with fewer than 20 scans is described by all scans.
        """
        groups, features = members(classes, count), features.double()
        centre, spread = features.mean(0), features.std(0).clamp_min(1e-6)
        standard = (features - centre) / spread
        _, sizes, axes = torch.linalg.svd(standard, full_matrices=False)
        share = sizes.square().cumsum(0) / sizes.square().sum()
        kept = min(int((share < _VARIANCE_KEPT).sum()) + 1, len(features) // 10 + 1)
        projected = standard @ axes[:kept].T
        mixtures = [_best_mixture(projected[chosen]) for chosen in groups]
        state = {name: torch.stack([mixture[name] for mixture in mixtures]) for name in mixtures[0]}
        return cls({"centre": centre, "spread": spread, "axes": axes[:kept].contiguous(), **state})

    def score(self, seen: Observation) -> Score:
        """Score each image: nats.

        Raises:
            NotFittedError: the observation has no features of the hardened model.
        """
        found = _hardened(seen)
        if found is None:
            raise NotFittedError(self.name)
        fit = {name: value.to(seen.images.device) for name, value in self._state.items()}
        features = (found.double() - fit["centre"]) / fit["spread"] @ fit["axes"].T
        c = seen.groups
        density = _log_density(features, fit["weights"][c], fit["means"][c], fit["precisions"][c], fit["log_dets"][c])
        return Score(self.name, -density)

    def state(self) -> dict[str, Tensor]:
        """Standardisation, axes and one mixture a class."""
        return {name: value.cpu() for name, value in self._state.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        return cls(state)


def _hardened(seen: Observation) -> Tensor | None:
    """(N, D) features of the best twin there is."""
    return next((seen.twin_features[name] for name in TWINS if name in seen.twin_features), None)


def _log_density(x: Tensor, weights: Tensor, means: Tensor, precisions: Tensor, log_dets: Tensor) -> Tensor:
    """(N,) log-density of (N, D) points, each under its own mixture (N, K), (N, K, D), (N, K, D, D), (N, K)."""
    offsets = x[:, None, :] - means
    distances = torch.einsum("nkd,nkde,nke->nk", offsets, precisions, offsets)
    each = weights.log() + 0.5 * (log_dets - distances - x.shape[1] * math.log(2 * math.pi))
    return torch.logsumexp(each, 1)


def _best_mixture(points: Tensor) -> dict[str, Tensor]:
    """The mixture with the smallest BIC, padded to a fixed number of components."""
    n, d = points.shape
    best: tuple[float, dict[str, Tensor]] | None = None
    for k in range(1, _COMPONENTS + 1):
        if n < 10 * k:
            break
        mixture, likelihood = _mixture(points, k)
        bic = -2 * likelihood + math.log(n) * (k * (1 + d + d * (d + 1) / 2) - 1)
        if best is None or bic < best[0]:
            best = bic, mixture
    assert best is not None
    return {name: _padded(name, value) for name, value in best[1].items()}


def _padded(name: str, value: Tensor) -> Tensor:
    """Components that weigh nothing, up to the fixed number."""
    missing = _COMPONENTS - len(value)
    filler = torch.zeros_like(value[:1]).expand(missing, *value.shape[1:])
    return torch.cat([value, filler]) if name != "weights" else torch.cat([value, filler + 1e-300])


def _mixture(points: Tensor, k: int) -> tuple[dict[str, Tensor], float]:
    """Expectation-maximisation from a fixed start; covariances shrunk towards their mean variance."""
    n, d = points.shape
    order = (points @ torch.linalg.svd(points - points.mean(0), full_matrices=False)[2][0]).argsort()
    shares = torch.zeros(n, k, dtype=points.dtype)
    for part, chosen in enumerate(torch.tensor_split(order, k)):
        shares[chosen, part] = 1
    likelihood = -math.inf
    for _ in range(_ROUNDS):
        sizes = shares.sum(0).clamp_min(1e-6)
        means = shares.T @ points / sizes[:, None]
        offsets = points[:, None, :] - means
        covariances = torch.einsum("nk,nkd,nke->kde", shares, offsets, offsets) / sizes[:, None, None]
        sphere = covariances.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(d, dtype=points.dtype)
        covariances = (1 - _SHRINKAGE) * covariances + _SHRINKAGE * sphere + 1e-6 * torch.eye(d, dtype=points.dtype)
        precisions, log_dets = torch.linalg.inv(covariances), -torch.linalg.slogdet(covariances)[1]
        distances = torch.einsum("nkd,kde,nke->nk", offsets, precisions, offsets)
        joint = (sizes / n).log() + 0.5 * (log_dets - distances - d * math.log(2 * math.pi))
        total = torch.logsumexp(joint, 1, keepdim=True)
        shares = (joint - total).exp()
        before, likelihood = likelihood, float(total.sum())
        if likelihood - before < 1e-4 * n:
            break
    return {"weights": sizes / n, "means": means, "precisions": precisions, "log_dets": log_dets}, likelihood
