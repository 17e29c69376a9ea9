"""MART: scans that are misread even without an attack teach more than those that are safe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from detectors.models.outputs import Task
from lab.hardening.method import Method, Pupil
from lab.learning import Batch

_SAFE = 1.0001
"""Keeps the logarithm finite where the strongest wrong class has the whole probability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mart(Method):
    """Boosted cross-entropy under attack, plus the divergence from the clean answer where that one is unsure.

    Wang et al. 2020, OpenReview rklOg6EFwS. Each finding of several is two classes of its own. Limits: Croce and Hein
    2020, arXiv:2003.01690, measure several points less than was reported.
    """

    name: ClassVar[str] = "mart"
    paper: ClassVar[str] = "Wang et al. 2020, OpenReview rklOg6EFwS"
    broken_by: ClassVar[str] = "Croce and Hein 2020, arXiv:2003.01690 (less robust than reported)"
    limits: ClassVar[str] = (
        "Robust inside its own ball and norm only; costs clean accuracy, most where classes overlap."
    )

    eps: float = 4.0
    """Grey levels."""
    steps: int = 7
    stride: float = 0.25
    weight: float = 5.0

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the objective under an attack on the labels."""
        changed = pupil.misled(batch, eps=self.eps, steps=self.steps, stride=self.stride)
        return objective(pupil, batch, changed, self.weight)


def objective(pupil: Pupil, batch: Batch, changed: Tensor, weight: float) -> Tensor:
    """Return MART's loss, a scalar, of a batch and its attacked images (N, C, H, W)."""
    labels = of_two(batch.labels) if pupil.course.task is Task.MULTILABEL else batch.labels
    clean, hard = (_classes(pupil(shown), pupil.course.task) for shown in (batch.images, changed))
    own, under = torch.log_softmax(clean, 1), torch.log_softmax(hard, 1)
    wrong = under.exp().scatter(1, labels[:, None], 0.0).amax(1)
    boosted = functional.cross_entropy(hard, labels) - torch.log(_SAFE - wrong).mean()
    apart = (own.exp() * (own - under)).sum(1)
    unsure = 1 - own.exp().gather(1, labels[:, None])[:, 0]
    return boosted + weight * (apart * unsure).mean()


def of_two(labels: Tensor) -> Tensor:
    """(N, K) findings, 0 or 1, as (N * K,) classes."""
    return labels.flatten()


def _classes(logits: Tensor, task: Task) -> Tensor:
    """Logits of classes that exclude each other: as they are, or (N * K, 2) of (N, K) findings."""
    if task is not Task.MULTILABEL:
        return logits
    return torch.stack([-logits.flatten(), logits.flatten()], 1) / 2
