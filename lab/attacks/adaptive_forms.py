"""Other forms of the informed attack, each against another reason to stay calm, and the union of all."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from detectors.observation import Needs, Observation, Signal
from lab.attacks.adaptive import Adaptive
from lab.attacks.attack import Attack, Attacked, Target, check
from lab.attacks.autoattack import strongest
from lab.attacks.gate import Follow
from lab.attacks.guarded import Past
from lab.attacks.method import Knowledge
from lab.attacks.scene import Scene

FLOOR = 1e-4
"""Least variance of a feature: one that never moves would otherwise rule."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TwinTransfer(Adaptive):
    """Lowers the hardened twins' margins in place of the model's, and lets the result transfer to the model.

    The twins are the attacker's surrogates (Papernot et al. 2016, arXiv:1605.07277), and the best there are: whoever
    looks along the protected model's gradient sees little, and a twin that believes the wrong class raises no alarm.
    Success is judged by the model. Limits: without twins it is nothing; what moves a twin need not move the model.
    """

    name: ClassVar[str] = "adaptive-twins"

    def _follow(self, _scene: Scene) -> tuple[Follow, Needs]:
        if not self.ensemble.probe.twins:
            raise ValueError(f"{self.name}: there are no twins to attack")
        return twins_margin, Needs(frozenset({Signal.TWINS}))


def twins_margin(scene: Scene, seen: Observation) -> Tensor:
    """The mean margin of all twins, and of the model a tenth: enough to bring it along where they are through."""
    margins = torch.stack([scene.judge(logits) for logits in seen.twins.values()])
    return margins.mean(0) + 0.1 * scene.judge(seen.logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMatching(Adaptive):
    """Draws every tapped layer's features, and the twins', to those of a clean scan that the model reads otherwise.

    Sabour et al. 2016, arXiv:1511.05122 (adversarial manipulation of deep representations); the hierarchical feature
    constraint of Yao et al. 2021, arXiv:2012.09501, on all layers, by whitened squared distance. A scan whose inside
    looks like a clean one's is calm to whoever looks inside. The statistic is kept calm beside it as in `Adaptive`.
    Limits: an image for which there is no clean scan of another class is attacked by its margin alone.
    """

    name: ClassVar[str] = "adaptive-features"

    examples: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    """Clean scans of the attacker's own, (M, C, rows, columns) stored values, and their labels; None: those attacked.
    """
    likeness: float = 1.0
    """Weight of the mean distance over layers, beside the margin."""

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Attack (N, C, rows, columns) stored values; see `Attack`."""
        own = self if self.examples is not None else replace(self, examples=(images, labels))
        return Adaptive.__call__(own, target, images, labels)

    def _follow(self, scene: Scene) -> tuple[Follow, Needs]:
        assert self.examples is not None
        reads = Needs(frozenset({Signal.FEATURES, Signal.TWINS}))
        images, labels = self.examples
        known, margins = self._seen(scene.target, images, labels, reads)
        mine, _ = self._seen(scene.target, scene.stored(scene.clean), scene.labels, reads)
        goals = _Goals.of(scene, mine, known, margins, labels)

        def lowered(now: Scene, seen: Observation) -> Tensor:
            return now.judge(seen.logits) + self.likeness * goals.away(now, _layers(seen))

        return lowered, reads

    @torch.no_grad()
    def _seen(self, target: Target, images: Tensor, labels: Tensor, reads: Needs) -> tuple[list[Tensor], Tensor]:
        """Return what is inside stored values, by layer (N, D), and the model's margins (N,)."""
        parts = [self.ensemble.probe.observe(target.view(part), reads) for part in torch.split(images, self.batch)]
        seen = Observation.joined(parts)
        return _layers(seen), target.task.margin(seen.logits, labels)


@dataclass(frozen=True, slots=True)
class _Goals:
    """What each image's features are drawn to."""

    features: list[Tensor]
    """By layer, (N, D)."""
    variances: list[Tensor]
    """By layer, (D,), over the clean scans."""
    there: Tensor
    """(N,) float: 1 where there is a clean scan of another class."""

    @classmethod
    def of(cls, scene: Scene, mine: list[Tensor], known: list[Tensor], margins: Tensor, labels: Tensor) -> _Goals:
        """Choose for each image the clean scan nearest in all layers of those that are read rightly, and otherwise."""
        variances = [values.var(dim=0, unbiased=False) + FLOOR for values in known]
        apart = torch.zeros(len(mine[0]), len(known[0]), device=mine[0].device)
        for own, theirs, variance in zip(mine, known, variances, strict=True):
            scale = variance.sqrt()
            apart = apart + torch.cdist(own / scale, theirs / scale).square() / own.shape[1]
        same = (scene.labels[:, None] == labels[None]).reshape(*apart.shape, -1).all(dim=2)
        apart = torch.where(same | (margins <= 0)[None], torch.inf, apart)
        nearest = apart.argmin(dim=1)
        return cls([values[nearest] for values in known], variances, apart.amin(dim=1).isfinite().float())

    def away(self, scene: Scene, seen: list[Tensor]) -> Tensor:
        """(N,): mean squared whitened distance, over all layers."""
        parts = [
            ((values - goal[scene.index]).square() / variance).mean(dim=1)
            for values, goal, variance in zip(seen, self.features, self.variances, strict=True)
        ]
        return self.there[scene.index] * torch.stack(parts).mean(dim=0)


def _layers(seen: Observation) -> list[Tensor]:
    """Features of the model's taps and of the twins, (N, D) each."""
    return [*seen.features.values(), *seen.twin_features.values()]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveSuite(Past):
    """The strongest of all informed attacks for each image: what a report should call the adaptive attacker.

    As AutoAttack does for bare models (Croce and Hein 2020, arXiv:2003.01690): the members take their turns at what is
    left. Limits: those of its members; it is a union of known attacks, not a proof.
    """

    name: ClassVar[str] = "adaptive-suite"
    knowledge: ClassVar[Knowledge] = "gradients"

    steps: int = 100
    restarts: int = 2
    """Starts of each form."""

    def __post_init__(self) -> None:
        assert self.members

    @property
    def members(self) -> tuple[Attack, ...]:
        """The attacks in their order, the one that finds most first."""
        shared: dict[str, Any] = {
            "eps": self.eps, "ensemble": self.ensemble, "alpha": self.alpha, "steps": self.steps,
            "restarts": self.restarts, "batch": self.batch, "seed": self.seed,
        }  # fmt: skip
        return (
            Adaptive(**shared),
            Adaptive(**shared, ways=("orthogonal", "selective")),
            Adaptive(**shared, grain=4),
            TwinTransfer(**shared),
            FeatureMatching(**shared),
        )

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Attack (N, C, rows, columns) stored values; see `Attack`."""
        check(target, images, labels)
        return strongest(self.members, target, images, labels)
