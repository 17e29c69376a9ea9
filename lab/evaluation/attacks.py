"""Which attacks an evaluation runs, how each is configured at a grade, and what its attacker knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from detectors.ensemble import Ensemble
from lab.attacks.adaptive import Adaptive
from lab.attacks.apgd import APGD
from lab.attacks.attack import Attack
from lab.attacks.autoattack import AutoAttack
from lab.attacks.carlini_wagner import CarliniWagner
from lab.attacks.deepfool import DeepFool
from lab.attacks.fgsm import FGSM
from lab.attacks.low_frequency import LowFrequencyPGD
from lab.attacks.multiplied import BiasField
from lab.attacks.patch import Patch
from lab.attacks.pgd import PGD
from lab.attacks.square import Square
from lab.attacks.transfer import Transfer
from lab.data import DataError
from lab.evaluation.grades import Grade

Tier = Literal["benign", "oblivious", "transfer", "adaptive"]
Model = Callable[[Tensor], Tensor]

_SIZED: dict[str, Callable[[float, Grade, int], Attack]] = {
    "fgsm": lambda eps, _grade, seed: FGSM(eps=eps, seed=seed),
    "pgd": lambda eps, grade, seed: PGD(eps=eps, steps=grade.steps, restarts=grade.restarts, seed=seed),
    "apgd-ce": lambda eps, grade, seed: APGD(eps=eps, steps=grade.steps, restarts=grade.restarts, seed=seed),
    "apgd-dlr": lambda eps, grade, seed: APGD(
        eps=eps, steps=grade.steps, restarts=grade.restarts, loss="dlr", seed=seed
    ),
    "autoattack": lambda eps, grade, seed: AutoAttack(eps=eps, steps=grade.steps, queries=grade.queries, seed=seed),
    "square": lambda eps, grade, seed: Square(eps=eps, queries=grade.queries, seed=seed),
    "low-frequency": lambda eps, grade, seed: LowFrequencyPGD(eps=eps, steps=grade.steps, seed=seed),
}
_UNSIZED: dict[str, Callable[[Grade, int], Attack]] = {
    "deepfool": lambda _grade, seed: DeepFool(seed=seed),
    "cw": lambda grade, seed: CarliniWagner(steps=grade.steps, seed=seed),
    "bias-field": lambda grade, seed: BiasField(steps=grade.steps, seed=seed),
    "patch": lambda grade, seed: Patch(steps=grade.steps, seed=seed),
}
_TRANSFER = "transfer"
ALL = (*_SIZED, *_UNSIZED, _TRANSFER)
"""Every attack that an evaluation knows, in the order of reports."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One attack at one budget."""

    name: str
    eps: float | None
    """8-bit grey levels; None where the attack is bounded by something else."""
    tier: Tier
    attack: Attack


def planned(
    names: Sequence[str], levels: Sequence[float], grade: Grade, seed: int, taught: Callable[[], Model]
) -> list[Planned]:
    """Configure attacks.

    Args:
        names: of `ALL`.
        levels: budgets in 8-bit grey levels, for the attacks that have one.
        grade: how hard to try.
        seed: of everything that the attacks draw.
        taught: gives the attacker's own model, where transfer is asked for.

    Raises:
        DataError: no such attack, or a budget that is none.
    """
    if strange := sorted(set(names) - set(ALL)):
        raise DataError(f"no attack is called {', '.join(strange)}; there are {', '.join(ALL)}")
    if any(not (math.isfinite(level) and level > 0) for level in levels):
        raise DataError("a budget is a number of grey levels above 0")
    plans = [
        Planned(name, level, "oblivious", _SIZED[name](level, grade, seed))
        for name in names
        if name in _SIZED
        for level in levels
    ]
    plans += [Planned(name, None, "oblivious", _UNSIZED[name](grade, seed)) for name in names if name in _UNSIZED]
    if _TRANSFER in names:
        mine = taught()
        origin = "a small network of the attacker's own, taught by the protected model's answers on its training scans"
        for level in levels:
            carried = PGD(eps=level, steps=grade.steps, seed=seed)
            plans.append(Planned(_TRANSFER, level, "transfer", Transfer(attack=carried, surrogate=mine, origin=origin)))
    return plans


def informed(ensemble: Ensemble, alpha: float, levels: Sequence[float], grade: Grade, seed: int) -> list[Planned]:
    """The attacker who holds model, twins, detectors and threshold, at each budget."""
    return [
        Planned(
            Adaptive.name, level, "adaptive",
            Adaptive(eps=level, ensemble=ensemble, alpha=alpha, steps=grade.steps, restarts=grade.restarts, seed=seed),
        )
        for level in levels
    ]  # fmt: skip
