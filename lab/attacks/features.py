"""Attacks on what the model sees inside: hiding among a class's features, and turning its attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lab.attacks.attack import Target, check
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Best, Found, Loss, Scene, rising

Features = Callable[[Tensor], tuple[Tensor, Mapping[str, Tensor]]]
"""Rendered images to logits and, by layer, features (N, D) or (N, D, height, width); of the target's model."""

FLOOR = 1e-4
"""Least variance of a feature, beside its layer's mean: a feature that never moves would otherwise rule."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What clean images of each class look like in one layer: classes x components Gaussians without correlations."""

    means: Tensor
    """(classes, components, D)."""
    variances: Tensor
    """(classes, components, D)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureHiding(Method):
    """PGD that at the same time draws the features of every layer to those of clean images of the class aimed at.

    The hierarchical feature constraint of Yao et al. 2021, arXiv:2012.09501: cross-entropy of the likeliest wrong class
    plus the mean squared, whitened distance to its nearest component, summed over layers. It is the adaptive attack on
    detectors of feature density (UAD, MGM, Mahalanobis). Limits: no match for a detector on a second, hardened model.
    """

    name: ClassVar[str] = "feature-hiding"
    knowledge: ClassVar[Knowledge] = "gradients"

    features: Features = field(repr=False)
    clusters: Mapping[str, Cluster] = field(repr=False)
    """By layer, from `clusters_of`."""
    steps: int = 40
    stride: float = 0.1
    weight: float = 1.0
    """Of the distance, beside the cross-entropy."""

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        scene = scene.aiming_at_rank(0)
        best, closest = Best(scene), torch.full((len(scene.clean),), torch.inf, device=scene.clean.device)
        x = scene.anywhere(draws)
        for k in range(self.steps + 1):
            leaf = x.detach().requires_grad_(True)
            with torch.enable_grad():
                logits, seen = self.features(scene.target.view(scene.shown(leaf)))
                far = self._distance(seen, scene.goals)
                climbed = rising(scene, "ce", logits) - self.weight * far
                (gradient,) = torch.autograd.grad(climbed.sum(), leaf)
            margin = scene.judge(logits.detach())
            _keep_closest(best, closest, scene, x, margin, far.detach())
            if k < self.steps:
                x = scene.step(x, gradient, self.stride * scene.radius)
        return best.found()

    def _distance(self, seen: Mapping[str, Tensor], classes: Tensor | None) -> Tensor:
        """Return (N,), the sum over layers of the distance to the class's nearest component."""
        assert classes is not None
        total = []
        for name, cluster in self.clusters.items():
            away = pooled(seen[name])[:, None] - cluster.means[classes]  # (N, components, D)
            total.append((away.square() / cluster.variances[classes]).mean(dim=2).amin(dim=1))
        return torch.stack(total).sum(dim=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionAttack(Method):
    """PGD on features where the model attends, with the change confined to where it attends.

    After Wang et al. 2022, feature-space-restricted attention attack (IEEE Transactions on Cybernetics); the form here
    is ours. Attention is the gradient-weighted sum of the deepest features (Grad-CAM, Selvaraju et al. 2017,
    arXiv:1610.02391) of the clean image; the loss climbs while attended features leave their clean values, and steps
    shrink where nobody looks. Limits: at the same budget it can only do less than PGD; it changes less of the image.
    """

    name: ClassVar[str] = "attention"
    knowledge: ClassVar[Knowledge] = "gradients"

    features: Features = field(repr=False)
    layer: str
    """Whose features are attended to: (N, D, height, width)."""
    steps: int = 40
    stride: float = 0.1
    weight: float = 0.1
    """Of the features' way from their clean values, beside the margin."""
    share: float = 0.5
    """Of the image, the most attended part, that may change at all."""
    loss: Loss = "margin"

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        best = Best(scene)
        clean, attention = self._attention(scene)
        wide = torch.nn.functional.interpolate(attention, scene.clean.shape[2:], mode="bilinear", align_corners=False)
        most = wide.flatten(1).topk(max(1, int(self.share * wide[0].numel())), dim=1).indices
        open_ = torch.zeros_like(wide, dtype=torch.bool).flatten(1).scatter(1, most, value=True).view_as(wide)
        x = torch.where(open_, scene.anywhere(draws), scene.clean)
        scale = clean.square().flatten(1).mean(dim=1).clamp_min(1e-12)
        for k in range(self.steps + 1):
            leaf = x.detach().requires_grad_(True)
            with torch.enable_grad():
                logits, seen = self.features(scene.target.view(scene.shown(leaf)))
                moved = (attention * (seen[self.layer] - clean)).square().flatten(1).mean(dim=1) / scale
                climbed = rising(scene, self.loss, logits) + self.weight * moved
                (gradient,) = torch.autograd.grad(climbed.sum(), leaf)
            best.keep(scene, x, scene.judge(logits.detach()))
            if k < self.steps:
                x = scene.step(x, gradient * open_, self.stride * scene.radius)
        return best.found()

    def _attention(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Return the clean features (N, D, height, width) and where they speak for the label (N, 1, height, width)."""
        leaf = scene.clean.detach().requires_grad_(True)
        with torch.enable_grad():
            logits, seen = self.features(scene.target.view(scene.shown(leaf)))
            (slope,) = torch.autograd.grad(rising(scene, "margin", logits).sum(), seen[self.layer])
        found = seen[self.layer].detach()
        attention = (-slope.mean(dim=(2, 3), keepdim=True) * found).sum(dim=1, keepdim=True).clamp_min(0)
        return found, attention / attention.amax(dim=(2, 3), keepdim=True).clamp_min(1e-12)


def clusters_of(
    target: Target, features: Features, images: Tensor, labels: Tensor, *, components: int = 4, seed: int = 0
) -> dict[str, Cluster]:
    """Describe clean images, by layer and class, as a few clusters of their pooled features (k-means, ten rounds).

    Args:
        target: the model and the way to it.
        features: what the model sees inside.
        images: (N, C, rows, columns) stored values.
        labels: (N,) int64; every class up to the greatest has at least one image.
        components: clusters of a class; of one with fewer images, as many as it has.
        seed: of the first means.

    Raises:
        ValueError: a class without an image.
    """
    check(target, images, labels)
    with torch.no_grad():
        seen = {name: pooled(values) for name, values in features(target.view(images))[1].items()}
    classes = int(labels.max()) + 1
    if empty := [k for k in range(classes) if not bool((labels == k).any())]:
        raise ValueError(f"no image of class {', '.join(map(str, empty))}")
    draws = torch.Generator().manual_seed(seed)
    return {name: _clustered(values, labels, classes, components, draws) for name, values in seen.items()}


def pooled(features: Tensor) -> Tensor:
    """Return (N, D): the mean over places."""
    return features.flatten(2).mean(dim=2) if features.ndim > 2 else features


def _clustered(values: Tensor, labels: Tensor, classes: int, components: int, draws: torch.Generator) -> Cluster:
    means, variances = [], []
    floor = FLOOR + 0.01 * values.var(dim=0, unbiased=False).mean()
    for k in range(classes):
        mine = values[labels == k]
        first = torch.randperm(len(mine), generator=draws)[:components].to(mine.device)
        centres = mine[first.repeat(math.ceil(components / len(first)))[:components]]
        for _ in range(10):
            nearest = torch.cdist(mine, centres).argmin(dim=1)
            member = torch.nn.functional.one_hot(nearest, components).to(mine.dtype)
            count = member.sum(dim=0)[:, None]
            centres = torch.where(count > 0, member.T @ mine / count.clamp_min(1), centres)
        spread = (mine - centres[nearest]).square().mean(dim=0) + floor
        means.append(centres)
        variances.append(spread.expand(components, -1))
    return Cluster(torch.stack(means), torch.stack(variances))


def _keep_closest(best: Best, closest: Tensor, scene: Scene, x: Tensor, margin: Tensor, far: Tensor) -> None:
    """Keep, of the misread points, the one that hides best; where there is none, the least margin."""
    misread = margin < 0
    better = torch.where(misread, far < closest[scene.index], closest[scene.index].isinf() & (margin < best.margin))
    places = scene.index[better]
    best.images[places] = scene.only(better).whole(x[better])
    best.margin[places] = margin[better]
    closest[scene.index[better & misread]] = far[better & misread]
