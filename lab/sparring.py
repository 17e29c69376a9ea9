"""Fits the fusion in rounds, each against an attacker who knows the fusion of the round before.

A fusion that only met attackers who do not know it trusts what they leave loud, and whoever does know it calms just
that. Here he is its sparring partner. After RADAR (Lapid, Dubin and Sipper 2024, arXiv:2404.12120), which trains a
detector on attacks against itself; the weights may moreover not be negative, so that more evidence never lowers the
score. What it leaves is what this attacker leaves: a better one may find more (Tramer et al. 2020, arXiv:2002.08347).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from detectors.ensemble import Ensemble
from detectors.material import Material
from detectors.methods.fusion import Fusion, features
from detectors.observation import Needs
from detectors.probe import Probe
from lab import joining
from lab.attacks.adaptive import Adaptive
from lab.workbench import Workbench

ATTACKED, STEPS = 64, 20
"""Scans that are attacked in a round, at most, and how long each: bounds the time."""
LEVELS = (2.0, 4.0, 8.0)
"""Budgets, 8-bit grey levels; each scan is attacked at one of them."""


@dataclass(frozen=True, slots=True)
class Sparring:
    """A method that makes a fusion: on scans that no twin was trained on and that nothing is calibrated on."""

    name: ClassVar[str] = Fusion.name
    version: ClassVar[str] = Fusion.version
    needs: ClassVar[Needs] = Fusion.needs

    bench: Workbench
    """Whose model is attacked; it must have a gradient."""
    rounds: int
    fpr: float
    """The attacker wants to pass at this rate, or at the lowest that the scans support."""

    def fit(self, material: Material) -> Fusion:
        """Return the fusion after the last round."""
        *_, last = self.after_each(material)
        return last

    def after_each(self, material: Material) -> Iterator[Fusion]:
        """Yield the fusion before the first round and after each.

        (1) fit it to attacks by who does not know it
        (2) attack some scans in the knowledge of the present one
        (3) fit it again, to what was misread in this and in every earlier round too, flagged or not

        Raises:
            InputError: too few scans, or none that an attack succeeded on.
        """
        clean, benign, attacked = (
            _features(material, group) for group in (material.clean, material.benign, material.attacked)
        )
        fusion = Fusion.of(clean, benign, attacked, rising=True).on(material.device)  # (1)
        yield fusion
        met = attacked[:0]
        draws = torch.Generator().manual_seed(material.seed)
        for number in range(self.rounds):
            known = alone(material.probe, fusion, fusion.odds(clean.to(material.device)), self.fpr)
            found = self._misread(known, material.clean, draws)  # (2)
            met = torch.cat([met, *([_features(material, found)] if len(found) else [])])
            kinds = (attacked, met) if len(met) > 1 else (attacked,)
            fusion = Fusion.of(clean, benign, *kinds, rising=True).on(material.device)  # (3)
            material.progress((number + 1) / self.rounds)
            yield fusion

    def from_state(self, state: dict[str, Tensor]) -> Fusion:
        """Return the fitted fusion again."""
        return Fusion.from_state(state)

    def _misread(self, known: Ensemble, clean: Tensor, draws: torch.Generator) -> Tensor:
        """Return (M, C, H, W) images, 0 to 1, that the model misreads, by who wants to pass this ensemble as well."""
        chosen = clean[torch.randperm(len(clean), generator=draws)[:ATTACKED]]
        found = []
        for levels, part in zip(LEVELS, chosen.tensor_split(len(LEVELS)), strict=True):
            seed = int(torch.randint(2**31, (1,), generator=draws))
            attack = Adaptive(
                eps=levels, ensemble=known, alpha=feasible(self.fpr, len(clean)), steps=STEPS, restarts=1, seed=seed
            )
            found.append(self.bench.misread(attack, part))
        return torch.cat(found)


def alone(probe: Probe, fusion: Fusion, odds: Tensor, fpr: float) -> Ensemble:
    """Return the ensemble of one fusion, calibrated on its odds (N,) of clean scans, N at least 20."""
    scores = {fusion.name: odds}
    members = joining.tails([fusion], scores)
    return joining.calibrated(probe, members, joining.channels(members, scores), scores, feasible(fpr, len(odds)))


def feasible(fpr: float, count: int) -> float:
    """Return the lowest rate, from this one up, at which so many clean scans let a scan be flagged."""
    return max(fpr, 1 / (count + 1))


def _features(material: Material, images: Tensor) -> Tensor:
    """Return (N, F) of (N, C, H, W) images, 0 to 1."""
    return features(material.look(images, Fusion.needs))
