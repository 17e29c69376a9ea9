"""The fast gradient sign method: one step, the cheapest attack there is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from detectors.perturb import step
from lab.attacks.attack import Attacked, Target, check


@dataclass(frozen=True, slots=True)
class FGSM:
    """One sign step of the whole budget up the cross-entropy, from the image itself.

    Goodfellow et al. 2015, arXiv:1412.6572. Limits: it overshoots where the loss bends, and so understates what an
    attacker can do; it is here since detectors must also see crude attacks.
    """

    name: ClassVar[str] = "fgsm"

    eps: float
    """Budget, 8-bit grey levels of the window."""
    batch: int = 32
    """Images attacked at once; bounds the memory and changes nothing else."""

    def __post_init__(self) -> None:
        if not (self.eps > 0 and self.batch > 0):
            raise ValueError(f"eps and batch must be above 0: {self}")

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Attack (N, 1, rows, columns) stored values; see `Attack`."""
        check(images, labels)
        budget = target.budget(self.eps)
        moved = []
        for part, wanted in zip(torch.split(images, self.batch), torch.split(labels, self.batch), strict=True):
            leaf = part.detach().requires_grad_(True)
            with torch.enable_grad():
                loss = functional.cross_entropy(target.logits(leaf), wanted, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, leaf)
            moved.append(step(part, gradient, part, size=budget, eps=budget, low=target.low, high=target.high))
        return target.judged(torch.cat(moved), labels, batch=self.batch)
