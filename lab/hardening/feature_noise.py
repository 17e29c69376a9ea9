"""Feature noise: random self-ensemble, and parametric noise injection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from lab.hardening.method import Course, Method, Model, Pupil
from lab.learning import Batch, Recipe
from lab.training import Classifier


class NoisyClassifier(Classifier):
    """A classifier with noise before the stem and every block, as large as a share of what it is added to."""

    def __init__(self, recipe: Recipe, channels: int, classes: int, share: float, *, learnt: bool) -> None:
        super().__init__(recipe, channels, classes)
        shares = torch.full((1 + len(self.stages),), share)
        self.shares: Tensor
        if learnt:
            self.shares = nn.Parameter(shares)
        else:
            self.register_buffer("shares", shares)
        self.source: torch.Generator | None = None
        """What the noise is drawn from; None is silence."""

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) images to (N, classes) logits."""
        x = self.stem(self._shaken(images, 0))
        for place, block in enumerate(self.stages):
            x = block(self._shaken(x, 1 + place))
        return cast("Tensor", self.head(x.mean(dim=(2, 3))))

    def _shaken(self, x: Tensor, place: int) -> Tensor:
        if self.source is None:
            return x
        noise = torch.randn(x.shape, generator=self.source, device=x.device)
        return x + self.shares[place] * x.detach().float().std() * noise


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureNoise(Method):
    """Noise inside the network while it learns.

    Liu et al. 2018, arXiv:1712.00673 (random self-ensemble): noise of a set size, the labels. With `learnt`, He et al.
    2019, arXiv:1811.09310 (parametric noise injection): the size is learnt too, on clean scans and under PGD. What is
    served is the network without noise: a verdict must be the same when it is asked for again. Limits: noise in
    service hides gradients, which an average over draws finds again (Athalye et al. 2018, arXiv:1802.00420).
    """

    name: ClassVar[str] = "feature_noise"
    paper: ClassVar[str] = "Liu et al. 2018, arXiv:1712.00673; He et al. 2019, arXiv:1811.09310"
    broken_by: ClassVar[str] = "Athalye et al. 2018, arXiv:1802.00420 (gradients averaged over draws)"
    limits: ClassVar[str] = "Served without noise; what it gains is smoothness, as far as small budgets reach."

    share: float = 0.2
    """Of the deviation of what noise is added to; at the start, where it is learnt."""
    learnt: bool = False
    eps: float = 4.0
    """Grey levels, where the size is learnt."""
    steps: int = 7
    stride: float = 0.25

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the loss of the labels under noise; with a learnt size, half of it under attack."""
        network = cast("NoisyClassifier", pupil.network)
        changed = pupil.misled(batch, eps=self.eps, steps=self.steps, stride=self.stride) if self.learnt else None
        network.source = batch.noise
        loss = pupil.loss(batch.images, batch.labels)
        if changed is not None:
            loss = (loss + pupil.loss(changed, batch.labels)) / 2
        network.source = None
        return loss

    def network(self, course: Course, _teacher: Model | None) -> nn.Module:
        """Return a classifier with noise."""
        channels, learnt = course.images.shape[1], self.learnt
        return NoisyClassifier(course.recipe, channels, course.classes, self.share, learnt=learnt)
