"""SSAT: few labels, and an attack on scans that have none."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from detectors.models.outputs import Task, decided
from lab.hardening.method import Method, Pupil, grown
from lab.learning import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class SSAT(Method):
    """The labels of some scans, plus `weight` times the network's own answer to all others under one FGSM step.

    Li, Pan and Zhu 2021, arXiv:2006.13555. The answer is that to the clean scan, by the network as it is, without a
    cut on its confidence. Their budgets are .26 to .77 grey levels, which no 8-bit file holds; here they are whole
    ones, and the weight grows with them.
    Limits: one step leaves several open (Wong et al. 2020, arXiv:2001.03994, and before them Athalye et al. 2018,
    arXiv:1802.00420); the paper evaluates against one step alone.
    """

    name: ClassVar[str] = "ssat"
    paper: ClassVar[str] = "Li, Pan and Zhu 2021, arXiv:2006.13555"
    broken_by: ClassVar[str] = "Wong et al. 2020, arXiv:2001.03994 (training on one step leaves several open)"
    limits: ClassVar[str] = (
        "Trained on one step: iterated attacks get further; wrong answers to unlabelled scans are learnt."
    )

    share: float = 1.0
    """Of the scans that have labels: the paper's questions are 0.05, 0.2 and 1."""
    eps_low: float = 1.0
    """Grey levels."""
    eps_high: float = 4.0
    weight: float = 1.0
    """Of the unlabelled part. The paper's 3 is for a network that can see already: one that starts from nothing learns
    to give one answer to everything."""

    def __post_init__(self) -> None:
        super(SSAT, self).__post_init__()  # slots=True makes another class of the same name
        if self.share > 1:
            raise ValueError(f"share must be at most 1: {self}")

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the loss of labelled scans, and the weighted one of the batch, whose labels are not looked at."""
        course = pupil.course
        known = labelled(course.labels, course.task, self.share, course.seed)
        chosen = known[torch.randint(len(known), (len(batch.images),), generator=batch.draws)]
        shown = course.recipe.augmentation(course.images[chosen], batch.draws).clamp(0.0, 1.0).to(batch.images.device)
        taught = pupil.loss(shown, course.labels[chosen].to(batch.labels.device))

        guess = decided(pupil.steady(batch.images), course.task).long()
        eps = self.eps_low + float(torch.rand((), generator=batch.draws)) * (self.eps_high - self.eps_low)
        changed = pupil.misled(
            batch, eps=eps, steps=1, stride=1.0, climb=lambda logits: course.loss(logits, guess), start=False
        )
        return taught + self.weight * grown(batch) * pupil.loss(changed, guess)


def labelled(labels: Tensor, task: Task, share: float, seed: int) -> Tensor:
    """Return the places (M,) of a share of the labels, the same for the same seed, of each class alike."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if task is Task.MULTILABEL:
        return order[: math.ceil(share * len(labels))]
    parts = [order[labels[order] == each] for each in sorted(set(labels.tolist()))]
    return torch.cat([part[: math.ceil(share * len(part))] for part in parts])
