"""TRADES: right on clean images, and the same answer all around them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lab.hardening.method import Method, Pupil
from lab.learning import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Trades(Method):
    """The labels on clean images, plus `weight` times the divergence of the answer under an attack on that divergence.

    Zhang et al. 2019, arXiv:1901.08573. Of findings the divergence is the sum over them. Limits: those of adversarial
    training; Gowal et al. 2020, arXiv:2010.03593, measure less under stronger attacks than was reported.
    """

    name: ClassVar[str] = "trades"
    paper: ClassVar[str] = "Zhang et al. 2019, arXiv:1901.08573"
    broken_by: ClassVar[str] = "Gowal et al. 2020, arXiv:2010.03593 (stronger attacks); other norms as for pgd_at"
    limits: ClassVar[str] = "Robust inside its own ball and norm only; the weight trades clean for robust accuracy."

    eps: float = 4.0
    """Grey levels."""
    steps: int = 7
    stride: float = 0.25
    weight: float = 6.0

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the loss of the labels and the weighted divergence."""
        answer = pupil.steady(batch.images)
        changed = pupil.misled(
            batch, eps=self.eps, steps=self.steps, stride=self.stride, climb=lambda logits: pupil.away(answer, logits)
        )
        clean = pupil(batch.images)
        apart = pupil.away(clean, pupil(changed)).mean()
        return pupil.course.loss(clean, batch.labels).mean() + self.weight * apart
