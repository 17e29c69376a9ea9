"""Every attack that an evaluation can run: what its attacker knows, what bounds it, and how it is made at a grade."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lab.attacks.apgd import APGD
from lab.attacks.asma import ASMA, Deformation
from lab.attacks.attack import TASKS, Attack
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
from lab.attacks.rehearsed import Rehearsed, Rehearsing
from lab.attacks.simulated import NES, ZOO, GradientSimulation
from lab.attacks.square import Square
from lab.attacks.transfer import Transfer
from lab.attacks.universal import UniversalPerturbation
from lab.evaluation.grades import Grade
from lab.evaluation.means import Means

Tier = Literal["benign", "oblivious", "black-box", "transfer", "adaptive"]
"""What the attacker knows: nothing and wants nothing; the model; its answers; a model of his own; the detectors too."""

LEVELS, RMS = "grey levels, every value", "grey levels, root of the mean square"
_EVERY = frozenset(TASKS)
_ANSWERS = _EVERY - {"segmentation"}
_ORIGIN = "a small network of the attacker's own, taught by the protected model's answers on its training scans"


@dataclass(frozen=True, slots=True)
class Asked:
    """What an attack is made from."""

    eps: float
    """8-bit grey levels; infinite where the attack has no such budget."""
    grade: Grade
    seed: int
    means: Means

    def pairs(self, each: int) -> int:
        """Steps of so many pairs of questions that the grade's questions allow."""
        return max(1, self.grade.queries // (2 * each))


@dataclass(frozen=True, slots=True)
class Choice:
    """One attack of an evaluation."""

    tier: Tier
    budget: str
    """What bounds it: of what a number of grey levels is the size, or what stands in its place."""
    make: Callable[[Asked], Attack]
    sized: bool = True
    """Whether it is run once for each budget in grey levels."""
    tasks: frozenset[str] = _EVERY
    """For what it is."""


def _carried(asked: Asked) -> Attack:
    attack = PGD(eps=asked.eps, steps=asked.grade.steps, seed=asked.seed)
    return Transfer(attack=attack, surrogate=asked.means.own_model(), origin=_ORIGIN)


def _rehearsed(asked: Asked, attack: Rehearsing) -> Attack:
    scans = asked.means.own_scans()
    return Rehearsed(attack=attack, images=scans.images, labels=scans.labels)


def _hiding(asked: Asked) -> Attack:
    features, _ = asked.means.inside()
    return FeatureHiding(
        eps=asked.eps, features=features, clusters=asked.means.clusters(), steps=asked.grade.steps, seed=asked.seed
    )


def _attending(asked: Asked) -> Attack:
    features, layer = asked.means.inside()
    return AttentionAttack(eps=asked.eps, features=features, layer=layer, steps=asked.grade.steps, seed=asked.seed)


CHOICES: dict[str, Choice] = {
    "fgsm": Choice("oblivious", LEVELS, lambda a: FGSM(eps=a.eps, seed=a.seed)),
    "bim": Choice("oblivious", LEVELS, lambda a: BIM(eps=a.eps, steps=a.grade.steps, seed=a.seed)),
    "pgd": Choice(
        "oblivious", LEVELS, lambda a: PGD(eps=a.eps, steps=a.grade.steps, restarts=a.grade.restarts, seed=a.seed)
    ),
    "pgd-ce": Choice(
        "oblivious", LEVELS,
        lambda a: PGD(eps=a.eps, steps=a.grade.steps, restarts=a.grade.restarts, loss="ce", seed=a.seed),
    ),
    "pgd-l2": Choice(
        "oblivious", RMS,
        lambda a: PGD(eps=a.eps, steps=a.grade.steps, restarts=a.grade.restarts, norm="l2", seed=a.seed),
    ),
    "apgd-ce": Choice(
        "oblivious", LEVELS, lambda a: APGD(eps=a.eps, steps=a.grade.steps, restarts=a.grade.restarts, seed=a.seed)
    ),
    "apgd-dlr": Choice(
        "oblivious", LEVELS,
        lambda a: APGD(eps=a.eps, steps=a.grade.steps, restarts=a.grade.restarts, loss="dlr", seed=a.seed),
    ),
    "autoattack": Choice(
        "oblivious", LEVELS,
        lambda a: AutoAttack(eps=a.eps, steps=a.grade.steps, queries=a.grade.queries, seed=a.seed),
    ),
    "fab": Choice("oblivious", LEVELS, lambda a: FAB(eps=a.eps, steps=a.grade.steps, seed=a.seed), tasks=_ANSWERS),
    "square": Choice("black-box", LEVELS, lambda a: Square(eps=a.eps, queries=a.grade.queries, seed=a.seed)),
    "nes": Choice("black-box", LEVELS, lambda a: NES(eps=a.eps, steps=a.pairs(25), probes=25, seed=a.seed)),
    "zoo": Choice("black-box", LEVELS, lambda a: ZOO(eps=a.eps, steps=a.pairs(32), cells=32, seed=a.seed)),
    "gradient-simulation": Choice(
        "black-box", LEVELS, lambda a: GradientSimulation(eps=a.eps, steps=a.pairs(25), probes=25, seed=a.seed)
    ),
    "hopskipjump": Choice(
        "black-box", LEVELS,
        # Twenty steps whose probes grow with the root of the step ask 62 times the first one's.
        lambda a: HopSkipJump(eps=a.eps, norm="linf", probes=max(4, a.grade.queries // 62), seed=a.seed),
    ),
    "low-frequency": Choice(
        "oblivious", LEVELS, lambda a: LowFrequencyPGD(eps=a.eps, steps=a.grade.steps, seed=a.seed)
    ),
    "momentum-pgd": Choice("oblivious", LEVELS, lambda a: MomentumPGD(eps=a.eps, steps=a.grade.steps, seed=a.seed)),
    "momentum-pgd-wide": Choice(
        # Smoothed more widely than `gradient_residual` has learnt, and as Dong et al. do it.
        "oblivious", LEVELS, lambda a: MomentumPGD(eps=a.eps, steps=a.grade.steps, kernel=15, seed=a.seed),
    ),
    "universal": Choice(
        "oblivious", LEVELS, lambda a: _rehearsed(a, UniversalPerturbation(eps=a.eps, seed=a.seed))
    ),
    "gap": Choice("oblivious", LEVELS, lambda a: _rehearsed(a, GAP(eps=a.eps, seed=a.seed))),
    "advgan": Choice("oblivious", LEVELS, lambda a: _rehearsed(a, AdvGAN(eps=a.eps, seed=a.seed))),
    "feature-hiding": Choice("oblivious", LEVELS, _hiding, tasks=frozenset({"multiclass"})),
    "attention": Choice("oblivious", LEVELS, _attending),
    "deepfool": Choice(
        "oblivious", "none: the nearest wrong image", lambda a: DeepFool(seed=a.seed), sized=False, tasks=_ANSWERS
    ),
    "cw": Choice(
        "oblivious", "none: the nearest wrong image",
        lambda a: CarliniWagner(steps=a.grade.steps, seed=a.seed), sized=False,
    ),
    "bias-field": Choice(
        "oblivious", "factor of the signal, at most 1.2",
        lambda a: BiasField(steps=a.grade.steps, seed=a.seed), sized=False,
    ),
    "patch": Choice(
        "oblivious", "2 % of the area", lambda a: Patch(steps=a.grade.steps, seed=a.seed), sized=False
    ),
    "speckle": Choice("benign", "factor of the signal, at most 1.1", lambda a: Speckle(seed=a.seed), sized=False),
    "adversarial-speckle": Choice(
        "oblivious", "factor of the signal, at most 1.1",
        lambda a: AdversarialSpeckle(steps=a.grade.steps, seed=a.seed), sized=False,
    ),
    "deformation": Choice(
        "oblivious", "2 pixels of displacement, factor at most 1.1",
        lambda a: Deformation(steps=a.grade.steps, seed=a.seed), sized=False,
    ),
    "asma": Choice(
        "oblivious", "none: a length is paid for", lambda a: ASMA(steps=a.grade.steps, seed=a.seed),
        sized=False, tasks=frozenset({"segmentation"}),
    ),
    "lesion-tampering": Choice(
        "black-box", "one disc, a quarter of the shorter side", lambda a: LesionTampering(seed=a.seed), sized=False
    ),
    "transfer": Choice("transfer", LEVELS, _carried),
}  # fmt: skip
"""By name, in the order of reports."""
