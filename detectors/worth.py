"""What each member of an ensemble adds on development attacks, and what it costs against an attacker who knows it.

All members share one budget of false alarms. One that catches what no other does earns its share; one that catches what
others catch as well only loosens their thresholds, and an attacker who can step around it uses that (docs/adr/0005).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from detectors.calibration import ParetoTail
from detectors.ensemble import ROBUST, Channel, Member, join, loudest
from detectors.errors import InputError

Scores = Mapping[str, Tensor]
"""By detector, (N,) scores of one set of images."""
GAIN, PRICE = 0.005, 0.02
"""What a member must add to be worth any price, and what one that adds less may cost: shares of the attacks."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What members are compared on."""

    clean: Scores
    """Of clean development scans, at least `fewest_to_compare` of them."""
    attacked: Scores
    """Of successful attacks by someone who does not know the detectors."""
    adaptive: Scores | None = None
    """Of misread scans by someone who knows them all; None where nobody could."""


@dataclass(frozen=True, slots=True)
class Worth:
    """One deciding member, measured by leaving it out."""

    alone: float
    """Share of the attacks that it catches by itself, with the whole budget."""
    gain: float
    """By how much the ensemble catches more with it than without it; negative where it only takes budget."""
    price: float | None
    """By how much more adaptive attacks get past the ensemble with it than without; None where none were given."""


def fewest_to_compare(fpr: float) -> int:
    """The smallest number of clean scans on which members can be compared at this rate."""
    return max(20, math.ceil(1 / fpr - 1e-9))


def worth(
    members: Sequence[Member],
    channels: Sequence[Channel],
    trial: Trial,
    fpr: float,
) -> dict[str, Worth]:
    """Measure every deciding member.

    Thresholds are empirical quantiles of the clean scores given, for comparing members with one another: they promise
    nothing.

    Args:
        members: of the ensemble.
        channels: likewise.
        trial: what they are compared on.
        fpr: false-positive rate at which they are compared.

    Raises:
        InputError: too few clean scans, or no attacks.
    """
    clean, attacked, adaptive = trial.clean, trial.attacked, trial.adaptive
    deciding = [member for member in members if member.channel is not None]
    count = len(clean[deciding[0].detector.name])
    if count < fewest_to_compare(fpr) or not len(attacked[deciding[0].detector.name]):
        raise InputError(f"{count} clean scans are too few to compare members at {fpr:g}, or there is no attack")
    whole = _Rule.of(deciding, channels, clean, fpr)
    found = {}
    for member in deciding:
        name = member.detector.name
        rest = [other for other in deciding if other is not member]
        without = _Rule.of(rest, channels, clean, fpr) if rest else None
        price = None
        if adaptive is not None:
            price = (without.caught(adaptive) if without is not None else 0.0) - whole.caught(adaptive)
        found[name] = Worth(
            float((attacked[name] > _quantile(clean[name], fpr)).float().mean()),
            whole.caught(attacked) - (without.caught(attacked) if without is not None else 0.0),
            price,
        )
    return found


def least_worth(members: Sequence[Member], found: Mapping[str, Worth]) -> str | None:
    """The member that should no longer decide: it adds nothing, and an attacker who knows it gains by it.

    Twins never go: they are the defence against that attacker. None where every member pays its way.
    """
    homes = {member.detector.name: member.channel for member in members}
    idle = {
        name: each.price
        for name, each in found.items()
        if homes[name] != ROBUST and each.gain < GAIN and each.price is not None and each.price > PRICE
    }
    return max(idle, key=lambda name: idle[name]) if idle else None


@dataclass(frozen=True, slots=True)
class _Rule:
    """Some members, joined as the ensemble joins them, with the threshold that spends the budget."""

    members: Sequence[Member]
    channels: Sequence[Channel]
    threshold: float

    @classmethod
    def of(cls, members: Sequence[Member], channels: Sequence[Channel], clean: Scores, fpr: float) -> "_Rule":
        homes = {member.channel for member in members}
        total = sum(channel.weight for channel in channels if channel.name in homes)
        kept = [
            replace(
                channel,
                weight=channel.weight / total,
                tail=ParetoTail.fit(loudest(members, channel.name, clean)),
            )
            for channel in channels
            if channel.name in homes
        ]
        return cls(members, kept, _quantile(join(members, kept, clean), fpr))

    def caught(self, scores: Scores) -> float:
        """Share of the images that are flagged."""
        return float((join(self.members, self.channels, scores) > self.threshold).float().mean())


def _quantile(scores: Tensor, fpr: float) -> float:
    """The smallest score that at most a share of `fpr` of these exceed."""
    return float(torch.quantile(scores.double(), 1 - fpr, interpolation="higher"))
