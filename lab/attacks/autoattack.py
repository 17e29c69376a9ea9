"""AutoAttack: four attacks that fail for different reasons, each on what the ones before could not mislead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from detectors.perturb import Norm
from lab.attacks.apgd import APGD
from lab.attacks.attack import Attack, Attacked, Target, check
from lab.attacks.fab import FAB
from lab.attacks.method import Knowledge
from lab.attacks.square import Square


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoAttack:
    """The union of APGD-CE, APGD-T, FAB-T and Square.

    Croce and Hein 2020, arXiv:2003.01690, the standard version (L2: without Square). Limits: it says nothing of a
    detector or of a randomised defence; both need an attack made for them (Tramer et al. 2020, arXiv:2002.08347).
    """

    name: ClassVar[str] = "autoattack"
    knowledge: ClassVar[Knowledge] = "gradients"

    eps: float
    """Budget, 8-bit grey levels of the window: of every value, or as the root of the mean square for L2."""
    steps: int = 100
    queries: int = 5000
    """Of Square."""
    targets: int = 9
    """Wrong classes that APGD-T and FAB-T aim at."""
    norm: Norm = "linf"
    batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        assert self.members

    @property
    def members(self) -> tuple[Attack, ...]:
        """The attacks in their order, the cheapest first."""
        eps, steps, norm, batch, seed = self.eps, self.steps, self.norm, self.batch, self.seed
        white: tuple[Attack, ...] = (
            APGD(eps=eps, batch=batch, seed=seed, steps=steps, loss="ce", norm=norm),
            APGD(eps=eps, batch=batch, seed=seed, steps=steps, loss="dlr", norm=norm, targets=self.targets),
            FAB(eps=eps, batch=batch, seed=seed, steps=steps, norm=norm, targets=self.targets),
        )
        return white if norm == "l2" else (*white, Square(eps=eps, batch=batch, seed=seed, queries=self.queries))

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Attack (N, C, rows, columns) stored values; see `Attack`."""
        check(target, images, labels)
        return strongest(self.members, target, images, labels)


def strongest(members: Sequence[Attack], target: Target, images: Tensor, labels: Tensor) -> Attacked:
    """Return, for each image, the least margin that any member reaches; each attacks what the others left."""
    best, history = Attacked(images.clone(), *_nothing_yet(images)), []
    for member in members:
        left = torch.nonzero(~best.success)[:, 0]
        if not len(left):
            break
        before, found = len(images) - len(left), member(target, images[left], labels[left])
        history += [before + curve for curve in found.history]
        better = found.margin < best.margin[left]
        best.images[left[better]] = found.images[better]
        best.margin[left[better]] = found.margin[better]
        best.success[left] = found.success
    return replace(best, history=tuple(history))


def _nothing_yet(images: Tensor) -> tuple[Tensor, Tensor]:
    count = len(images)
    return (
        torch.zeros(count, dtype=torch.bool, device=images.device),
        torch.full((count,), torch.inf, device=images.device),
    )
