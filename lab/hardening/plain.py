"""No defence at all: what every other method is held against."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lab.hardening.method import Method, Pupil
from lab.learning import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Undefended(Method):
    """The labels alone, as most deployed models are trained.

    Goodfellow et al. 2015, arXiv:1412.6572, break it with one step.
    """

    name: ClassVar[str] = "plain"
    paper: ClassVar[str] = "none"
    broken_by: ClassVar[str] = "Goodfellow et al. 2015, arXiv:1412.6572"
    limits: ClassVar[str] = "No defence: any attack of a few grey levels misleads it."

    temperature: float = 1.0
    """Logits are divided by it in training, and in service not: a teacher's softened answers."""

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the loss of the labels."""
        return pupil.course.loss(pupil(batch.images) / self.temperature, batch.labels).mean()
