"""Input-gradient regularisation: the loss shall not depend on any pixel much."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from detectors.observation import LEVEL
from lab.hardening.method import Method, Pupil, grown
from lab.learning import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class InputGradient(Method):
    """The labels, plus `weight` times the squared length of the loss's gradient to the image.

    Ross and Doshi-Velez 2018, arXiv:1711.09404; Drucker and Le Cun 1992. Computed in 32 bits: it is differentiated
    twice. Limits: it flattens the loss at the scan and no further; right beside it the loss may bend, and iterated
    attacks go there (Qin et al. 2019, arXiv:1907.02610).
    """

    name: ClassVar[str] = "input_gradient"
    paper: ClassVar[str] = "Ross and Doshi-Velez 2018, arXiv:1711.09404"
    broken_by: ClassVar[str] = "Qin et al. 2019, arXiv:1907.02610 (flat at the scan, bent beside it)"
    limits: ClassVar[str] = "First order only: small budgets; the loss may bend right beside the scan."

    weight: float = 100.0
    """Of the squared bound on what one grey level, everywhere, changes in the loss: the same for images of any size."""

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the loss of the labels and the weighted penalty."""
        leaf = batch.images.detach().requires_grad_(True)
        each = pupil.course.loss(pupil.network(leaf), batch.labels)
        (gradient,) = torch.autograd.grad(each.sum(), leaf, create_graph=True)
        bound = LEVEL**2 * leaf[0].numel() * gradient.square().flatten(1).sum(1)
        return each.mean() + self.weight * grown(batch) * bound.mean()
