"""A model with its detectors in front, as whoever sees verdicts alone meets it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from detectors.ensemble import Ensemble
from lab.attacks.attack import Attacked, Target
from lab.attacks.hopskipjump import HopSkipJump
from lab.attacks.method import Knowledge
from lab.attacks.tasks import Segmentation, Task
from lab.seeds import seeds_of

HELD = 1e3
"""Margin of what is held: no score of the model is as far from success."""


@dataclass(frozen=True, slots=True)
class Admitted:
    """Success is misread and admitted: logits carry one column more, which is above 0 where the scan was held."""

    task: Task
    """What misread means."""

    def margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the margin of what was admitted, and `HELD` of what was not."""
        return torch.where(logits[:, -1] > 0, HELD, self.task.margin(logits[:, :-1], labels))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of the answers alone."""
        return self.task.loss(logits[:, :-1], labels)

    def check(self, labels: Tensor, count: int) -> None:
        """Refuse what the task refuses."""
        self.task.check(labels, count)


def with_verdict(logits: Tensor, held: Tensor) -> Tensor:
    """Return (N, K + 1): answers (N, K), and whether each scan was held (N,)."""
    return torch.cat([logits, torch.where(held, 1.0, -1.0).to(logits)[:, None]], dim=1)


def guarded(target: Target, ensemble: Ensemble, alpha: float) -> Target:
    """Return the target behind its detectors, p > alpha being admitted; for attacks that need no gradient.

    Raises:
        ValueError: a segmentation: a mask has no column for a verdict.
    """
    if isinstance(target.task, Segmentation):
        raise ValueError("verdicts are told beside classes or findings, not beside masks")

    def asked(rendered: Tensor) -> Tensor:
        with torch.no_grad():
            seen = ensemble.probe.observe(rendered, ensemble.deciding_needs, seeds=seeds_of(rendered))
            return with_verdict(seen.logits, ensemble.conformal.p_value(ensemble.statistic(seen)) <= alpha)

    return replace(target, model=asked, task=Admitted(target.task))


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What an attack is told that other attacks carry out: to be misread, and past these detectors."""

    eps: float
    """Budget, 8-bit grey levels of the window."""
    ensemble: Ensemble = field(repr=False)
    alpha: float = 0.01
    """The deployed rule that is to be passed, p > alpha."""
    batch: int = 32
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayDecisions(Past):
    """HopSkipJump on the whole gateway: all it learns is whether a scan went through, and what the model then said.

    Chen et al. 2020, arXiv:1904.02144, its decision being misread *and* admitted; Chen et al. 2019, arXiv:1907.05587,
    count such questions. No masked gradient hinders it. Limits: thousands of near-duplicate questions an image, which
    a gateway sees; weaker than whoever holds the detectors.
    """

    name: ClassVar[str] = "adaptive-decisions"
    knowledge: ClassVar[Knowledge] = "decisions"

    steps: int = 20
    probes: int = 50
    """Of the first step; their number grows with the square root of the steps."""

    def __post_init__(self) -> None:
        assert self._search

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Attack (N, C, rows, columns) stored values; see `Attack`."""
        return self._search(guarded(target, self.ensemble, self.alpha), images, labels)

    @property
    def _search(self) -> HopSkipJump:
        return HopSkipJump(
            eps=self.eps, norm="linf", steps=self.steps, probes=self.probes, batch=self.batch, seed=self.seed
        )
