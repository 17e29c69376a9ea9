"""The detectors joined to one calibrated p-value: three channels, joined by OR.

The robust channel is the loudest hardened twin, the sensitive one the linear fusion, the third the gradient-aligned
residual network, which sees nearly every attack that follows the victim's gradient and no other. They are joined by a
maximum and not by a sum, because a sum lets an informed attacker pay for one alarm with another's calm. Detectors
outside a channel are scored and reported, and weigh nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.calibration import ConformalCalibration, Guarantee, ParetoTail, Promised, TailCalibration
from detectors.detector import Detector, ReportedOnly
from detectors.errors import DetectorError, InputError, NotFittedError
from detectors.mondrian import Claims, Mondrian
from detectors.observation import Needs, Observation, union
from detectors.probe import Probe

JOINED = "ensemble"
"""Under this name the joined statistic is calibrated, beside the detectors under theirs."""
ROBUST, SENSITIVE, GRADIENT = "robust", "sensitive", "gradient"
WEIGHTS: Mapping[str, float] = {ROBUST: 4 / 10, SENSITIVE: 3 / 10, GRADIENT: 3 / 10}
"""Share of the false-positive budget that each channel may spend: the two that an informed attacker calms more easily,
and whose clean outliers are wilder, less than the twins."""


@dataclass(frozen=True, slots=True)
class Member:
    """A detector and what it means for a score of it to be large."""

    detector: Detector
    tail: TailCalibration
    """On clean scans A: orders its scores among those of its channel."""
    conformal: ConformalCalibration
    """On clean scans B: its own p-value, for reports."""
    channel: str | None
    """`robust`, `sensitive`, `gradient`, or None: reported only."""

    def __post_init__(self) -> None:
        if self.channel is not None and isinstance(self.detector, ReportedOnly):
            raise DetectorError(f"{self.detector.name} says where pixels come from; it may not decide")


@dataclass(frozen=True, slots=True)
class Channel:
    """Members of which the loudest speaks."""

    name: str
    weight: float
    """Share of the false-positive budget."""
    tail: ParetoTail
    """On clean scans A: of the loudest member's surprise."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What the ensemble found in one batch; plain tensors without a graph, on the device of the models."""

    logits: Tensor
    """(N, K) of the protected model."""
    predictions: Tensor
    """Its decision of each image, in the form that `Task` gives: (N,) int64 of one class."""
    scores: Mapping[str, Tensor]
    """By detector, (N,): larger is more suspicious."""
    p_values: Mapping[str, Tensor]
    """By detector, (N,) float64: each by itself, for reports; ranks alone."""
    statistic: Tensor
    """(N,): the channels joined; minus the logarithm of a tail probability, which orders and does not promise."""
    p_value: Tensor
    """(N,) float64: the one that decides; beyond the loudest clean scan an estimate."""


class Ensemble:
    """Scores a batch with every member, in one shared pass."""

    def __init__(
        self,
        probe: Probe,
        members: Sequence[Member],
        channels: Sequence[Channel],
        conformal: ConformalCalibration,
        mondrian: Mondrian | None = None,
    ) -> None:
        """Join fitted members.

        Args:
            probe: makes the shared pass.
            members: all detectors, deciding and reported.
            channels: at least one, each with at least one member; weights add to 1.
            conformal: of the joined statistic, on clean scans B.
            mondrian: of every member and under `JOINED` of the whole, by category; takes the place of the others.
        """
        self.probe = probe
        self.mondrian = mondrian
        self.members = tuple(members)
        self.channels = tuple(channels)
        self.conformal = conformal
        staffed = {member.channel for member in self.members} - {None}
        if not self.channels or staffed != {channel.name for channel in self.channels}:
            raise NotFittedError("every channel needs a member, and every deciding member a channel")
        if not math.isclose(sum(channel.weight for channel in self.channels), 1, abs_tol=1e-6):
            raise NotFittedError("the weights of the channels do not add to 1")
        names = [member.detector.name for member in self.members]
        if len(set(names)) != len(names):
            raise NotFittedError("two detectors share a name")
        self._promised = Promised({member.detector.name: member.conformal for member in members})

    @property
    def needs(self) -> Needs:
        """The union of what the members read."""
        return union(member.detector.needs for member in self.members)

    @property
    def deciding_needs(self) -> Needs:
        """What the joined statistic alone reads."""
        return union(member.detector.needs for member in self.members if member.channel)

    @property
    def guarantee(self) -> Guarantee:
        """What the p-value that decides promises."""
        return self.conformal.guarantee if self.mondrian is None else self.mondrian.guarantee

    def examine(self, images: Tensor, seeds: Tensor | None = None, claims: Claims | None = None) -> Examination:
        """Examine one batch.

        (1) look once, with everything that any member needs
        (2) every member scores
        (3) the channels join to one statistic, and that to one p-value

        Args:
            images: (N, C, H, W) float32, as the model takes them, on the device of the models.
            seeds: (N,) int64 of random neighbours; needed where a member draws.
            claims: the categories that each image may be of, where it is calibrated by category; None: any of them.

        Raises:
            InputError: images that no detector may look at, or that may be of no calibrated category.
            DetectorError: a detector gave something that is no score.
        """
        seen = self.probe.observe(images, self.needs, seeds=seeds)  # (1)
        with torch.no_grad():
            scores = _scores(self.members, seen)  # (2)
            statistic = join(self.members, self.channels, scores)  # (3)
            p_values, p_value = self._p_values(scores, statistic, claims)
        return Examination(seen.logits, seen.decision, scores, p_values, statistic, p_value)

    def statistic(self, seen: Observation) -> Tensor:
        """The joined statistic (N,) of an observation; larger is more suspicious; keeps the graph."""
        return self.voices(seen).amax(0)

    def voices(self, seen: Observation) -> Tensor:
        """(channels, N): what each channel says of an observation; the statistic is the loudest; keeps the graph."""
        scores = _scores([member for member in self.members if member.channel], seen)
        return voices(self.members, self.channels, scores)

    def _p_values(
        self, scores: Mapping[str, Tensor], statistic: Tensor, claims: Claims | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """By detector, and of the whole."""
        if (by := self.mondrian) is not None:
            alone = {name: by.p_value(name, values, claims) for name, values in scores.items()}
            return alone, by.p_value(JOINED, statistic, claims, beyond=True)
        if claims is not None:
            raise InputError("the detectors are not calibrated by category")
        return self._promised.p_values(scores), self.conformal.p_value(statistic, beyond=True)


def join(members: Sequence[Member], channels: Sequence[Channel], scores: Mapping[str, Tensor]) -> Tensor:
    """(N,) maximum over channels of -log(p / weight): the OR of the channels, each with its share of the budget."""
    return voices(members, channels, scores).amax(0)


def voices(members: Sequence[Member], channels: Sequence[Channel], scores: Mapping[str, Tensor]) -> Tensor:
    """(channels, N): what each channel says, -log(p / weight)."""
    loud = torch.stack([loudest(members, channel.name, scores) for channel in channels])
    weights = loud.new_tensor([math.log(channel.weight) for channel in channels])
    return ParetoTail.together([channel.tail for channel in channels]).surprise(loud) + weights[:, None]


def loudest(members: Sequence[Member], channel: str, scores: Mapping[str, Tensor]) -> Tensor:
    """(N,) the largest surprise of a channel's members."""
    staff = [member for member in members if member.channel == channel]
    tails = TailCalibration.together([member.tail for member in staff])
    return tails.surprise(torch.stack([scores[member.detector.name] for member in staff])).amax(0)


def _scores(members: Sequence[Member], seen: Observation) -> dict[str, Tensor]:
    """By detector, (N,), checked: what is not a number must not pass for calm."""
    scores = {member.detector.name: member.detector.score(seen).values for member in members}
    for name, values in scores.items():
        if values.shape != (len(seen.images),):
            raise DetectorError(f"{name} gave {tuple(values.shape)} scores for {len(seen.images)} images")
    finite = torch.isfinite(torch.stack(list(scores.values()))).all(1)
    if not bool(finite.all()):
        name = list(scores)[finite.tolist().index(False)]
        raise DetectorError(f"{name} gave a score that is not finite")
    return scores
