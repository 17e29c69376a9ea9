"""Every attack by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

from lab.attacks.apgd import APGD
from lab.attacks.asma import ASMA, Deformation
from lab.attacks.attack import Attack
from lab.attacks.autoattack import AutoAttack
from lab.attacks.carlini_wagner import CarliniWagner
from lab.attacks.deepfool import DeepFool
from lab.attacks.fab import FAB
from lab.attacks.features import AttentionAttack, FeatureHiding
from lab.attacks.fgsm import FGSM
from lab.attacks.generative import GAP, AdvGAN
from lab.attacks.hopskipjump import HopSkipJump
from lab.attacks.lesion import LesionTampering
from lab.attacks.low_frequency import LowFrequencyPGD
from lab.attacks.momentum import MomentumPGD
from lab.attacks.multiplied import AdversarialSpeckle, BiasField, Speckle
from lab.attacks.patch import Patch
from lab.attacks.pgd import BIM, PGD
from lab.attacks.simulated import NES, ZOO, GradientSimulation
from lab.attacks.square import Square
from lab.attacks.transfer import Transfer
from lab.attacks.universal import UniversalPerturbation

_MADE: tuple[Any, ...] = (
    FGSM, BIM, PGD, MomentumPGD, APGD, FAB, Square, AutoAttack, CarliniWagner, DeepFool,
    HopSkipJump, NES, ZOO, GradientSimulation,
    LowFrequencyPGD, Transfer, BiasField, Patch, UniversalPerturbation, Speckle, AdversarialSpeckle,
    GAP, AdvGAN, FeatureHiding, AttentionAttack, ASMA, Deformation, LesionTampering,
)  # fmt: skip

ATTACKS: dict[str, Callable[..., Attack]] = {made.name: made for made in _MADE}
"""The attacks in the order in which a report lists them."""

IN_EVALUATIONS = {
    "pgd": ("pgd-ce", "pgd-l2"),
    "apgd": ("apgd-ce", "apgd-dlr"),
    "low-frequency-pgd": ("low-frequency",),
    "momentum-pgd": ("momentum-pgd-wide",),
}
"""What an evaluation calls an attack with options, by the attack's name here."""


def named(name: str, **options: object) -> Attack:
    """Return an attack by its name, configured.

    Args:
        name: one of `names()`.
        options: fields of the attack, above all `eps`, the budget in 8-bit grey levels of the window.

    Raises:
        ValueError: no such attack, an option that it does not have, one that it needs, or a value out of range.
    """
    if name not in ATTACKS:
        meant = [f" (here {here}, with options)" for here, theirs in IN_EVALUATIONS.items() if name in theirs]
        raise ValueError(f"no attack is called {name!r}{''.join(meant)}; there are {', '.join(ATTACKS)}")
    made = ATTACKS[name]
    known = {each.name: each for each in fields(made)}  # type: ignore[arg-type]
    if strange := sorted(set(options) - set(known)):
        raise ValueError(f"{name} has no option {', '.join(strange)}; it has {', '.join(known)}")
    needed = [each.name for each in known.values() if each.default is MISSING and each.name not in options]
    if needed:
        raise ValueError(f"{name} needs {', '.join(needed)}")
    for key, value in options.items():
        default = known[key].default
        if isinstance(value, str) and isinstance(default, int | float) and not isinstance(default, bool):
            raise ValueError(f"{name}: {key} must be a number, got {value!r}")
    return made(**options)


def names(*, alone: bool = False) -> tuple[str, ...]:
    """Return the names of all attacks; with `alone`, of those that need nothing but a budget."""

    def needs(made: Callable[..., Attack]) -> set[str]:
        return {each.name for each in fields(made) if each.default is MISSING}  # type: ignore[arg-type]

    return tuple(name for name, made in ATTACKS.items() if not alone or needs(made) <= {"eps"})
