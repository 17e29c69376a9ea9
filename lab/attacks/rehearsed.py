"""Attacks that learn on scans of the attacker's own, and are then carried to those that count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from torch import Tensor

from lab.attacks.attack import Attacked, Target, check
from lab.attacks.method import Knowledge

Carried = Callable[[Target, Tensor, Tensor], Attacked]
"""What was learnt, as an attack on other images."""


class Rehearsing(Protocol):
    """An attack that learns something which fits other images too."""

    @property
    def eps(self) -> float:
        """Budget, 8-bit grey levels of the window."""
        ...

    def learnt(self, target: Target, images: Tensor, labels: Tensor) -> Carried:
        """Learn on (N, C, rows, columns) stored values and their labels."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """A universal change or a generator, learnt on the attacker's own scans; the scans attacked are new to it.

    Poursaeed et al. 2018, arXiv:1712.02328; Xu et al. 2021, arXiv:2103.03438 (grey box). Limits: those of what is
    learnt; scans unlike the attacker's own suffer less.
    """

    name: ClassVar[str] = "rehearsed"
    knowledge: ClassVar[Knowledge] = "training"

    attack: Rehearsing
    images: Tensor = field(repr=False)
    """(M, C, rows, columns) stored values of his own, before the same target."""
    labels: Tensor = field(repr=False)

    @property
    def eps(self) -> float:
        """Budget of what is learnt."""
        return self.attack.eps

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Attack (N, C, rows, columns) stored values; see `Attack`."""
        check(target, images, labels)
        return self.attack.learnt(target, self.images, self.labels)(target, images, labels)
