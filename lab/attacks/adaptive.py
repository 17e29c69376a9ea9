"""The informed attacker: he holds model, twins, detectors and threshold, and wants to be misread and not noticed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from detectors.ensemble import Ensemble
from detectors.observation import Needs
from lab.attacks.gate import Follow, Gate, Pull, careful, joint, orthogonal, own_margin, selective
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Best, Found, Scene
from lab.attacks.walks import begun

Way = Literal["joint", "careful", "selective", "orthogonal"]
"""How a start weighs misreading against calm."""
WAYS: Mapping[str, Callable[[Pull, Tensor], Tensor]] = {
    "joint": joint,
    "careful": careful,
    "selective": selective,
    "orthogonal": orthogonal,
}
MOMENTUM = 0.75
TURN = 1.1
"""By how much the detectors' weight in the joint loss rises while an image is misread, and falls while it is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptive(Method):
    """Climbs misreading and calm together, on the very statistic that decides; the outcome counts when both hold.

    Starts take turns among `ways`: a joint loss, whose weight is moved for each image while it walks (Carlini and
    Wagner 2017, arXiv:1705.07263), and those that follow what is still missing, with more or less regard for what is
    reached (Bryniarski et al. 2022, arXiv:2106.15023, selective and orthogonal PGD). Every channel of the OR that is
    too loud is pushed at once (Tramer et al. 2020, arXiv:2002.08347: attack what decides). What has no gradient goes by
    its stated surrogate, the input gradient that a detector reads is held for each step, and what draws is averaged
    over fresh draws. Limits: it is one attack; `AdaptiveSuite` is the union of several, and a better one may find more,
    so what it leaves is a lower bound on evasion.

    In the outcome, `margin` is the larger of the class margin and of how far the statistic is over its threshold:
    `success` means misread and not flagged, and `history` says after how many steps.
    """

    name: ClassVar[str] = "adaptive"
    knowledge: ClassVar[Knowledge] = "gradients"
    free: ClassVar[frozenset[str]] = frozenset({"grain"})

    ensemble: Ensemble = field(repr=False)
    """What stands in front of the target's model."""
    alpha: float = 0.01
    """The deployed rule that is to be passed, p > alpha."""
    steps: int = 100
    restarts: int = 2
    """Starts: the first as many as there are ways from the image itself, the others from random points."""
    ways: tuple[Way, ...] = ("joint", "careful")
    """Of the starts, one after the other and again."""
    stride: float = 0.25
    """Length of the first steps, as a share of the budget; it falls to a tenth of that."""
    grain: int = 0
    """Pixels between points of a coarse grid: nothing finer changes (Guo et al. 2019, arXiv:1809.08758), so that
    detectors of high frequencies see nothing; 0 changes every pixel by itself."""
    samples: int = 20
    """Draws that a gradient is averaged over, where a detector draws; else one is enough."""

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if not self.ways or (strange := sorted(set(self.ways) - set(WAYS))):
            raise ValueError(f"ways must be some of {', '.join(WAYS)}, not {', '.join(strange) or 'none'}")

    def _search(self, scene: Scene, start: int, draws: torch.Generator) -> Found:
        gate = self._gate(scene)
        way = WAYS[self.ways[start % len(self.ways)]]
        best = Best(scene)
        walk = begun(scene, self.grain)
        if start >= len(self.ways):
            walk = walk.anywhere(scene, draws)
        fell = torch.zeros(self.steps + 1, dtype=torch.int64)
        weight, pace = torch.ones(len(scene.clean), 1, 1, 1, device=scene.clean.device), torch.zeros_like(walk.at)
        for k in range(self.steps):
            x = walk.shown(scene)
            pull = gate.pulls(scene, x, draws)
            best.keep(scene, x, pull.worst)
            going = pull.worst >= 0
            if not bool(going.all()):
                fell[k] = int((~going).sum())
                scene, pull, walk = scene.only(going), pull.only(going), walk.only(going)
                weight, pace = weight[going], pace[going]
                if not len(weight):
                    return best.found()._replace(curve=fell.cumsum(0))
            along = way(pull, weight)
            weight = torch.where((pull.margin < 0).view(-1, 1, 1, 1), weight * TURN, weight / TURN)
            pace = MOMENTUM * pace + walk.drawn(scene, along)
            share = 0.1 + 0.45 * (1 + math.cos(math.pi * k / self.steps))
            walk = walk.stepped(scene, pace, self.stride * share)
        x = walk.shown(scene)
        worst = gate.pulls(scene, x, draws).worst
        best.keep(scene, x, worst)
        fell[self.steps] = int((worst < 0).sum())
        return best.found()._replace(curve=fell.cumsum(0))

    def _gate(self, scene: Scene) -> Gate:
        follow, needs = self._follow(scene)
        return Gate(self.ensemble, self.ensemble.conformal.threshold(self.alpha), self.samples, follow, needs)

    def _follow(self, _scene: Scene) -> tuple[Follow, Needs]:
        """Return what is lowered to be misread, and what that reads."""
        return own_margin, Needs()

    def _starts(self, _classes: int) -> int:
        return self.restarts
