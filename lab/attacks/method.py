"""The frame of an attack: misread images are left alone, the others attacked in batches, start after start."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from detectors.perturb import Norm
from lab.attacks.attack import Attacked, Target, check
from lab.attacks.scene import Found, Loss, Scene

Knowledge = Literal["gradients", "scores", "decisions", "training", "none"]
"""What the attacker has: the model, its scores, its decisions alone, a model or scans of his own, nothing."""

CHOICES: dict[str, tuple[str, ...]] = {"loss": get_args(Loss), "norm": get_args(Norm)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(ABC):
    """An attack that searches one batch at a time; a subclass says how."""

    name: ClassVar[str]
    knowledge: ClassVar[Knowledge]
    free: ClassVar[frozenset[str]] = frozenset()
    """Fields that need not be above 0, beside seed, goal and confidence."""
    bounded: ClassVar[bool] = True
    """It needs a budget of grey levels; else it looks for the nearest wrong image, or is bounded by something else."""

    eps: float
    """Budget, 8-bit grey levels of the window: of every value, or as the root of the mean square for L2."""
    batch: int = 32
    """Images attacked at once; bounds the memory, and changes nothing else but what is drawn."""
    seed: int = 0
    """Of everything that is drawn."""

    def __post_init__(self) -> None:
        allowed = self.free | {"seed", "goal", "confidence"}
        for each in fields(self):
            value = getattr(self, each.name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and not value > 0 and each.name not in allowed:
                raise ValueError(f"{each.name} must be above 0: {self}")
            if each.name in CHOICES and value not in CHOICES[each.name]:
                raise ValueError(f"{each.name} must be one of {', '.join(CHOICES[each.name])}: {self}")
        if self.bounded and math.isinf(self.eps):
            raise ValueError(f"eps must be finite: {self}")

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Attack (N, C, rows, columns) stored values; see `Attack`."""
        check(target, images, labels)
        draws = torch.Generator(images.device).manual_seed(self.seed)
        best, classes = self._clean(target, images, labels)
        history: list[Tensor] = []
        for start in range(self._starts(classes)):
            left = torch.nonzero(~best.success)[:, 0]
            if not len(left):
                break
            curves, before = [], int(best.success.sum())
            for chosen in torch.split(left, self.batch):
                scene = self._scene(target, images[chosen], labels[chosen], start)
                found = self._search(scene, start, draws)
                better = found.margin < best.margin[chosen]
                best.images[chosen[better]] = target.low + (found.images[better] * target.unit).round()
                best.margin[chosen[better]] = found.margin[better]
                best.success[chosen[better]] = found.margin[better] < 0
                curves += [] if found.curve is None else [found.curve]
            history += [before + torch.stack(curves).sum(0)] if curves else []
        return replace(best, history=tuple(history))

    @abstractmethod
    def _search(self, scene: Scene, start: int, draws: torch.Generator) -> Found:
        """Return the best storable images, within the budget, that this start comes upon."""

    def _scene(self, target: Target, images: Tensor, labels: Tensor, _start: int) -> Scene:
        """Return what the search is to see."""
        return Scene.of(target, images, labels, eps=self.eps, norm=self._norm())

    def _clean(self, target: Target, images: Tensor, labels: Tensor) -> tuple[Attacked, int]:
        """Return the images as they are, judged as the search judges, and how many logits the model gives."""
        found, classes = [], 0
        for part, wanted in zip(torch.split(images, self.batch), torch.split(labels, self.batch), strict=True):
            scene = self._scene(target, part, wanted, 0)
            with torch.no_grad():
                logits = scene.logits(scene.clean)
            found.append(scene.judge(logits))
            classes = logits.shape[1]
        margin = torch.cat(found)
        return Attacked(images.clone(), margin < 0, margin), classes

    def _starts(self, _classes: int) -> int:
        """Return how often an image that withstands is attacked, by a model of so many logits."""
        return 1

    def _norm(self) -> Norm:
        return "linf"


def checkpoints(steps: int) -> Iterator[int]:
    """Yield the steps after which a step size is reconsidered (Croce and Hein 2020, section 3.2)."""
    share, pause = 0.22, 0.22
    while share <= 1.0:
        yield math.ceil(share * steps - 1e-6)
        pause = max(pause - 0.03, 0.06)
        share += pause
