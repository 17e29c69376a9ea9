"""Adversarially robust distillation: a robust teacher's answer to the clean scan, learnt under attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lab.hardening.adversarial import AdversarialTraining
from lab.hardening.method import Method, Pupil
from lab.learning import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class ARD(Method):
    """The softened answer of a teacher that was trained adversarially, plus (1 - `share`) of the labels.

    Goldblum et al. 2020, arXiv:1905.09747. Limits: the pupil is as good as its teacher, and inherits its ball and norm
    (Tramer and Boneh 2019, arXiv:1904.13000).
    """

    name: ClassVar[str] = "ard"
    paper: ClassVar[str] = "Goldblum et al. 2020, arXiv:1905.09747"
    broken_by: ClassVar[str] = "Tramer and Boneh 2019, arXiv:1904.13000 (of its teacher: other norms)"
    limits: ClassVar[str] = "As good as its teacher; robust inside the teacher's ball and norm only."

    eps: float = 4.0
    """Grey levels, the teacher's too."""
    steps: int = 7
    stride: float = 0.25
    temperature: float = 30.0
    share: float = 1.0
    """Of the teacher's answer in what is learnt; the rest is the labels."""

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the divergence from the teacher's answer to the clean scan, and the loss of the labels."""
        t = self.temperature
        changed = pupil.misled(batch, eps=self.eps, steps=self.steps, stride=self.stride)
        apart = t**2 * pupil.away(pupil.told(batch.images) / t, pupil(changed) / t).mean()
        if self.share >= 1:
            return apart
        return self.share * apart + (1 - self.share) * pupil.loss(batch.images, batch.labels)

    def teaching(self) -> Method:
        """Return adversarial training of the same budget."""
        return AdversarialTraining(eps=self.eps, steps=self.steps, stride=self.stride)
