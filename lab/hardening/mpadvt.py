"""MPAdvT: half of the batches are attacked, each with a strength of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lab.hardening.method import Method, Pupil
from lab.learning import Batch

PIXEL_STEP = 1.0
"""Grey levels of one step of the attack, as in the paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MPAdvT(Method):
    """With a probability, a batch is replaced by one under PGD of a budget and a number of steps drawn for it.

    Xu et al. 2021, arXiv:2103.03438; of one class or of several findings. In pixel space: the released code attacks
    after normalisation, where its budgets of .01 to .04 are .24 to 2.3 grey levels, and picks the checkpoint by the
    accuracy under attack on the test set. Limits: the weak attacks that it draws leave strong ones open, as for
    adversarial training with few steps (Athalye et al. 2018, arXiv:1802.00420).
    """

    name: ClassVar[str] = "mpadvt"
    paper: ClassVar[str] = "Xu et al. 2021, arXiv:2103.03438"
    broken_by: ClassVar[str] = "Tramer and Boneh 2019, arXiv:1904.13000 (other norms); no independent attack is known"
    limits: ClassVar[str] = "Half of what it learns from is clean or weakly attacked: less robust than pgd_at."

    eps_low: float = 1.0
    """Grey levels."""
    eps_high: float = 8.0
    steps_max: int = 9
    probability: float = 0.5

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the loss of the labels, on the batch or on the attacked one."""
        if float(torch.rand((), generator=batch.draws)) >= self.probability:
            return pupil.loss(batch.images, batch.labels)
        return pupil.loss(drawn(pupil, batch, self.eps_low, self.eps_high, self.steps_max), batch.labels)


def drawn(pupil: Pupil, batch: Batch, low: float, high: float, steps_max: int) -> Tensor:
    """Return the batch under PGD of a budget from `low` to `high` grey levels and of 1 to `steps_max` steps."""
    eps = low + float(torch.rand((), generator=batch.draws)) * (high - low)
    steps = int(torch.randint(1, steps_max + 1, (), generator=batch.draws))
    return pupil.misled(batch, eps=eps, steps=steps, stride=min(1.0, PIXEL_STEP / eps))
