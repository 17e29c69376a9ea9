"""Adversarial training: what the network is shown is its own worst case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lab.hardening.method import Method, Pupil
from lab.learning import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversarialTraining(Method):
    """The labels on images under projected gradient descent, and no clean image.

    Madry et al. 2018, arXiv:1706.06083. Robust inside its ball and norm, not beyond: Tramer and Boneh 2019,
    arXiv:1904.13000. It costs clean accuracy, `steps` + 1 trainings' time, and overfits the attack late in training.
    """

    name: ClassVar[str] = "pgd_at"
    paper: ClassVar[str] = "Madry et al. 2018, arXiv:1706.06083"
    broken_by: ClassVar[str] = "Tramer and Boneh 2019, arXiv:1904.13000 (other norms)"
    limits: ClassVar[str] = "Robust inside its own ball and norm only; costs clean accuracy."

    eps: float = 4.0
    """Grey levels."""
    steps: int = 7
    stride: float = 0.25

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the loss of the labels under attack."""
        changed = pupil.misled(batch, eps=self.eps, steps=self.steps, stride=self.stride)
        return pupil.loss(changed, batch.labels)
