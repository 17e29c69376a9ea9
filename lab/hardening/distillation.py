"""Defensive distillation: for comparison only, since it hides gradients and stops nobody."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lab.hardening.method import Method, Pupil
from lab.hardening.plain import Undefended
from lab.learning import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class DefensiveDistillation(Method):
    """The answers of a teacher at a high temperature, learnt at that temperature and served without it.

    Papernot et al. 2016, arXiv:1511.04508. Broken by Carlini and Wagner 2017, arXiv:1608.04644: the logits grow with
    the temperature until the cross-entropy has no gradient left, which a loss of the logits does not mind.
    """

    name: ClassVar[str] = "distillation"
    paper: ClassVar[str] = "Papernot et al. 2016, arXiv:1511.04508"
    broken_by: ClassVar[str] = "Carlini and Wagner 2017, arXiv:1608.04644"
    limits: ClassVar[str] = (
        "No defence: it hides the gradient of the cross-entropy, and attacks on the logits go through."
    )

    temperature: float = 20.0

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the divergence from the teacher's softened answer."""
        t = self.temperature
        return pupil.away(pupil.told(batch.images) / t, pupil(batch.images) / t).mean()

    def teaching(self) -> Method:
        """Return plain training at the same temperature."""
        return Undefended(temperature=self.temperature)
