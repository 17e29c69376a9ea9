"""Explanation-based anomaly: is what the model looked at unlike what it looks at on clean scans of the class it chose?

Watson and Al Moubayed 2021, arXiv:2105.01959 (GradientShap maps, an anomaly score learned on clean maps). Here the map
is gradient x input from the shared backward pass, or where there is no gradient what hiding each cell of a grid takes
from the lead; the anomaly is a shrunk Mahalanobis distance for each class that the model decided. Departures from their
released code, whose confounds are known: predicted class instead of the true one, clean scans alone, and both groups
stored alike. On two small victims of ours AUROC .93 to 1.0 for PGD that knows nothing of it (by occlusion .69 to
1.0); their 88 % on MIMIC-CXR rests on confounds and is not to be expected. Limits: maps can be steered at will, and an
attacker who softens the network's kinks to do so takes it from .99 to below .2 (Dombrowski et al. 2019,
arXiv:1906.07983).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from detectors.covariance import Spread
from detectors.detector import Score
from detectors.errors import NotFittedError
from detectors.material import Material
from detectors.neighbours.occlusion import grid
from detectors.observation import Needs, Observation, Signal
from detectors.randomness import stream, uniform

CELLS = 8
"""Rows and columns of a pooled gradient map."""
_HIDDEN = 4
_TINY = 1e-12


class Explanation:
    """Squared distance of a map and its statistics to those of clean scans of the same decision; by how it is made."""

    version = "1"

    def __init__(
        self, name: str, needs: Needs, map_of: Callable[[Observation], Tensor], fitted: Spread | None = None
    ) -> None:
        self.name, self.needs = name, needs
        self._map_of, self._fitted = map_of, fitted

    def fit(self, material: Material) -> "Explanation":
        """Fit on clean scans alone."""
        seen = material.look(material.clean, self.needs)
        return self._with(Spread.fit(described(self._map_of(seen)), seen.groups, seen.group_count))

    def score(self, seen: Observation) -> Score:
        """Score each image: squared distance over the number of dimensions, about 1 for clean scans.

        Raises:
            NotFittedError: nothing was fitted, or the observation has no map.
        """
        if self._fitted is None:
            raise NotFittedError(self.name)
        return Score(self.name, self._fitted.distance(described(self._map_of(seen)), seen.groups))

    def state(self) -> dict[str, Tensor]:
        """Mean and precision of each class."""
        if self._fitted is None:
            raise NotFittedError(self.name)
        return self._fitted.state()

    def from_state(self, state: dict[str, Tensor]) -> "Explanation":
        """The fitted detector again."""
        return self._with(Spread(state))

    def _with(self, fitted: Spread) -> "Explanation":
        return Explanation(self.name, self.needs, self._map_of, fitted)


def gradient_map(seen: Observation) -> Tensor:
    """(N, 1, H, W): gradient x input, summed over channels; sums to what a linear model's lead would be."""
    if seen.input_gradient is None:
        raise NotFittedError("an explanation by gradient needs the input gradient")
    return (seen.images * seen.input_gradient).sum(1, keepdim=True)


def occlusion_map(seen: Observation) -> Tensor:
    """(N, 1, 4, 4): how much of the lead goes with each cell."""
    names = [each.name for each in grid(_HIDDEN)]
    if not all(name in seen.neighbours for name in names):
        raise NotFittedError("an explanation by occlusion needs every hidden cell")
    lost = torch.stack([seen.lead - seen.lead_in(seen.neighbours[name]) for name in names], 1)
    rounding = 1e-4 * (1 + seen.lead.detach()[:, None])
    return (lost - lost.clamp(-rounding, rounding)).view(-1, 1, _HIDDEN, _HIDDEN)


def gradient_shap(lead: Callable[[Tensor], Tensor], images: Tensor, seeds: Tensor, *, samples: int = 5) -> Tensor:
    """The paper's map, for offline comparison; costs `samples` forward and backward passes, not one shared one.

    Erion et al. 2021, arXiv:1906.10670 (expected gradients), against baselines of uniform noise.

    Args:
        lead: from (N, C, H, W) to (N,), how firmly the decision is held.
        images: (N, C, H, W), 0 to 1.
        seeds: (N,) int64, of baselines and places between.
        samples: baselines an image.

    Returns:
        (N, 1, H, W).
    """
    total = torch.zeros_like(images)
    for sample in range(samples):
        baseline = uniform(seeds, tuple(images.shape[1:]), stream(f"baseline{sample}"))
        place = uniform(seeds, (1, 1, 1), stream(f"place{sample}"))
        between = torch.lerp(baseline, images, place).detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(lead(between).sum(), between)
        total = total + gradient * (images - baseline)
    return (total / samples).sum(1, keepdim=True)


def described(maps: Tensor) -> Tensor:
    """(N, D) of (N, 1, H, W): the map's shares by cell, and how they are spread: quartiles, peak, Gini, entropy."""
    size = maps.abs().mean((1, 2, 3), keepdim=True) + _TINY
    shares = maps / size
    cells = functional.adaptive_avg_pool2d(shares, min(CELLS, *maps.shape[2:])).flatten(1)
    ordered = shares.abs().flatten(1).sort(1).values
    count = ordered.shape[1]
    ranks = torch.arange(1, count + 1, device=maps.device, dtype=maps.dtype)
    parts = ordered / (ordered.sum(1, keepdim=True) + _TINY)
    statistics = [
        ordered[:, 3 * count // 4] - ordered[:, count // 4],
        ordered[:, -1],
        (ordered.square().square().mean(1) + _TINY).log() - 2 * (ordered.square().mean(1) + _TINY).log(),
        (2 * ranks - count - 1) @ parts.T / count,
        -(parts * (parts + _TINY).log()).sum(1),
        size.flatten(1)[:, 0].log(),
    ]
    return torch.cat([cells, torch.stack(statistics, 1)], 1)


BY_GRADIENT = Explanation("explanation_gradient", Needs(frozenset({Signal.INPUT_GRADIENT})), gradient_map)
BY_OCCLUSION = Explanation("explanation_occlusion", Needs(neighbours=grid(_HIDDEN)), occlusion_map)
"""For models without a gradient; sixteen forward passes."""
