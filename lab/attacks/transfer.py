"""Attacks made on a model of the attacker's own, and shown to the one that is protected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import Tensor

from lab.attacks.attack import Attack, Attacked, Target, check
from lab.attacks.method import Knowledge


@dataclass(frozen=True, slots=True, kw_only=True)
class Transfer:
    """Another attack, made on a surrogate; the protected model is not asked before the end.

    Papernot et al. 2016, arXiv:1605.07277; for diagnosis Bortsova et al. 2021, arXiv:2006.06356, who find a shared
    initialisation the main risk. Limits: one shot; the attacker does not learn whether it worked.
    """

    name: ClassVar[str] = "transfer"
    knowledge: ClassVar[Knowledge] = "training"

    attack: Attack
    """Made on the surrogate."""
    surrogate: Callable[[Tensor], Tensor] = field(repr=False)
    """Rendered images to logits, as the target's model; of the same task."""
    origin: str
    """What the surrogate is, for the report: architecture, initialisation, data."""

    @property
    def eps(self) -> float:
        """Budget of the attack that is carried over."""
        return self.attack.eps

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Attack (N, C, rows, columns) stored values; see `Attack`."""
        check(target, images, labels)
        made = self.attack(replace(target, model=self.surrogate), images, labels)
        return target.judged(made.images, labels, batch=32)
