"""Which attacks an evaluation runs, how each is configured at a grade, and what its attacker knows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from detectors.ensemble import Ensemble
from lab.attacks.adaptive import Adaptive
from lab.attacks.adaptive_forms import AdaptiveSuite
from lab.attacks.attack import Attack
from lab.attacks.guarded import GatewayDecisions
from lab.attacks.registry import IN_EVALUATIONS
from lab.data import DataError
from lab.evaluation.choices import CHOICES, Asked, Tier
from lab.evaluation.grades import Grade
from lab.evaluation.means import Means

ALL = (
    "fgsm", "pgd", "apgd-ce", "apgd-dlr", "autoattack", "momentum-pgd", "square", "low-frequency",
    "deepfool", "cw", "bias-field", "patch", "transfer",
)  # fmt: skip
"""What an evaluation runs unless told otherwise, in the order of reports; `CHOICES` has more."""
Informed = Literal["single", "suite", "decisions"]
"""One attack, the strongest of all for each image, or questions to the gateway alone."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One attack at one budget."""

    name: str
    eps: float | None
    """8-bit grey levels; None where the attack is bounded by something else."""
    tier: Tier
    budget: str
    """What bounds it, in words: of what `eps` is the size, or what stands in its place."""
    attack: Attack


def planned(names: Sequence[str], levels: Sequence[float], grade: Grade, seed: int, means: Means) -> list[Planned]:
    """Configure attacks.

    Args:
        names: of `CHOICES`.
        levels: budgets in 8-bit grey levels, for the attacks that have one.
        grade: how hard to try.
        seed: of everything that the attacks draw.
        means: what the attackers bring; only what is asked for is made.

    Raises:
        DataError: no such attack, one that is not for the model's task, or a budget that 8-bit images cannot hold.
    """
    if strange := sorted(set(names) - set(CHOICES)):
        meant = {name: f"{name} (here {', '.join(IN_EVALUATIONS[name])})" for name in strange if name in IN_EVALUATIONS}
        told = ", ".join(meant.get(name, name) for name in strange)
        raise DataError(f"no attack is called {told}; there are {', '.join(CHOICES)}")
    if unfit := [name for name in dict.fromkeys(names) if means.task not in CHOICES[name].tasks]:
        raise DataError(f"{', '.join(unfit)}: not for a model whose task is {means.task}")
    if unheld := [level for level in levels if level < 1 or level % 1]:
        told = f"a budget is a whole number of grey levels, from 1 on, not {unheld[0]:g}"
        raise DataError(f"{told}: 8-bit images hold nothing between")
    return [
        Planned(name, level, choice.tier, choice.budget, choice.make(Asked(level or math.inf, grade, seed, means)))
        for name, choice in CHOICES.items()
        if name in names
        for level in (levels if choice.sized else (None,))
    ]


def informed(
    ensemble: Ensemble, alpha: float, levels: Sequence[float], grade: Grade, seed: int, how: Informed = "single"
) -> list[Planned]:
    """The attacker who holds model, twins, detectors and threshold, or may at least ask them, at each budget."""

    def made(level: float) -> Attack:
        if how == "decisions":
            return GatewayDecisions(
                eps=level, ensemble=ensemble, alpha=alpha, probes=max(4, grade.queries // 62), seed=seed
            )
        form = AdaptiveSuite if how == "suite" else Adaptive
        return form(eps=level, ensemble=ensemble, alpha=alpha, steps=grade.steps, restarts=grade.restarts, seed=seed)

    budget = "grey levels, every value"
    return [Planned(made(level).name, level, "adaptive", budget, made(level)) for level in levels]
