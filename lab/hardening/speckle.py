"""Speckle training with feature fusion: noise that grows with the signal, and features of every depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from lab.hardening.method import Course, Method, Model, Pupil
from lab.learning import Batch, Recipe
from lab.training import Classifier


class FusedClassifier(Classifier):
    """A classifier whose head reads the pooled features of every stage."""

    def __init__(self, recipe: Recipe, channels: int, classes: int) -> None:
        super().__init__(recipe, channels, classes)
        self.depths = recipe.blocks
        self.head = nn.Linear(sum(recipe.widths), classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) images to (N, classes) logits."""
        x, pooled, stages = self.stem(images), [], list(self.stages)
        for depth in self.depths:
            here, stages = stages[:depth], stages[depth:]
            for block in here:
                x = block(x)
            pooled.append(x.mean(dim=(2, 3)))
        return cast("Tensor", self.head(torch.cat(pooled, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeckleTraining(Method):
    """The labels on clean scans and on scans x + x n, n normal, with features of all stages fused.

    Lal et al. 2021, Sensors 21, 3922. Limits: speckle is a corruption and not an optimised attack, so what is won
    is steadiness under noise; gradient attacks go through (Goodfellow et al. 2015, arXiv:1412.6572).
    """

    name: ClassVar[str] = "speckle"
    paper: ClassVar[str] = "Lal et al. 2021, Sensors 21, 3922"
    broken_by: ClassVar[str] = "Goodfellow et al. 2015, arXiv:1412.6572 (random noise is no worst case)"
    limits: ClassVar[str] = "Steady under speckle; no defence against who follows a gradient."

    deviation: float = 0.3
    """Largest standard deviation of n; each scan's own is drawn."""

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the mean of both losses."""
        noise, device = batch.noise, batch.images.device
        size = self.deviation * torch.rand(len(batch.images), 1, 1, 1, generator=noise, device=device)
        speckled = batch.images * (1 + size * torch.randn(batch.images.shape, generator=noise, device=device))
        return (pupil.loss(batch.images, batch.labels) + pupil.loss(speckled.clamp(0.0, 1.0), batch.labels)) / 2

    def network(self, course: Course, _teacher: Model | None) -> nn.Module:
        """Return a classifier with fused features."""
        return FusedClassifier(course.recipe, course.images.shape[1], course.classes)
