"""What every attack shares: the target it climbs, the budget it keeps, and the judgement of what it stored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from gateway.pixels.imaging import Rendering, from_uint8, render
from gateway.profile import Profile
from lab.attacks.tasks import Multiclass, Multilabel, Segmentation, Task

TASKS: dict[str, Task] = {"multiclass": Multiclass(), "multilabel": Multilabel(), "segmentation": Segmentation()}


class Attack(Protocol):
    """Configured once, then called on any number of images; its `repr` is the whole configuration.

    The threat: the attacker may change every stored value by at most the budget. What counts is the image that would
    lie in the file: rounded to storable values, within the budget, and only then shown to the model.
    """

    @property
    def name(self) -> str:
        """What a report calls it."""
        ...

    @property
    def eps(self) -> float:
        """Budget, 8-bit grey levels of the window in each channel; infinite where something else bounds the attack."""
        ...

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Attack images of known labels.

        Args:
            target: the model and the way to it.
            images: (N, C, rows, columns) float32 stored values, whole numbers, on the model's device; C is 1, or 3
                of a colour.
            labels: what the model should go on to answer and the attacker does not want, as the target's task
                has it: (N,) int64 classes, (N, findings) or (N, height, width).

        Returns:
            The images as they would be stored, and which of them the model now gets wrong.
        """
        ...


@dataclass(frozen=True, slots=True)
class Attacked:
    """The outcome of an attack, judged after rounding."""

    images: Tensor
    """(N, C, rows, columns) float32 stored values, whole numbers within the budget."""
    success: Tensor
    """(N,) bool: the model's answer is wrong, or the one that was aimed at."""
    margin: Tensor
    """(N,) float32: logit of the label less the greatest other; negative where the attack succeeded."""
    history: tuple[Tensor, ...] = ()
    """For each start of an attack that tells, (steps + 1,) int64: how many images had succeeded after so many steps,
    those of earlier starts among them. Where the last curve still rises, more steps would find more."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model behind the gateway's rendering, and what a file of its modality can hold."""

    model: Callable[[Tensor], Tensor]
    """(N, channels, height, width) rendered images to (N, classes) logits, differentiable."""
    view: Callable[[Tensor], Tensor]
    """(N, C, rows, columns) stored values to rendered images, differentiable."""
    level: float
    """Stored values in one 8-bit grey level of the window."""
    low: float
    """Least storable value."""
    high: float
    """Greatest storable value."""
    task: Task = TASKS["multiclass"]
    """What a wrong answer is."""
    black: float = 0.0
    """Stored value shown as black: what multiplies the signal multiplies the distance from here."""

    @classmethod
    def of_dicom(cls, model: Callable[[Tensor], Tensor], rendering: Rendering, profile: Profile) -> Self:
        """Return the target for objects whose headers say `rendering`.

        Raises:
            ValueError: lookup table or sigmoid between stored value and window: a grey level has no one size there.
        """
        line = rendering.affine(profile)
        if line is None or line[0] == 0:
            raise ValueError("a grey level has no fixed size in stored values: the way to the window is not linear")
        low, high = (float(end) for end in rendering.stored)
        level, black = 1 / (255 * abs(line[0])), min(max(-line[1] / line[0], low), high)
        return cls(model, lambda x: render(x, rendering, profile), level, low, high, TASKS[profile.task], black)

    @classmethod
    def of_uint8(cls, model: Callable[[Tensor], Tensor], profile: Profile) -> Self:
        """Return the target for 8-bit images, where a stored value is a grey level of its channel."""
        return cls(model, lambda x: from_uint8(x, profile), 1.0, 0.0, 255.0, TASKS[profile.task])

    @property
    def unit(self) -> float:
        """Stored values in the whole width of the window."""
        return 255 * self.level

    def logits(self, stored: Tensor) -> Tensor:
        """Return what the model says of (N, C, rows, columns) stored values: (N, classes) for a classifier."""
        return self.model(self.view(stored))

    def budget(self, eps: float) -> float:
        """Return `eps` grey levels in stored values: whole ones, so that rounding never leaves the budget.

        Raises:
            ValueError: less than one storable step: no such attack can be written to a file.
        """
        if math.isinf(eps):
            return eps
        whole = math.floor(eps * self.level + 1e-6)
        if whole < 1:
            raise ValueError(f"{eps:g} grey levels are less than one storable step here (a level is {self.level:.3g})")
        return float(whole)

    def judged(self, images: Tensor, labels: Tensor, *, batch: int) -> Attacked:
        """Round to storable values and see what the model makes of them."""
        rounded = images.round()
        with torch.no_grad():
            parts = zip(torch.split(rounded, batch), torch.split(labels, batch), strict=True)
            margin = torch.cat([self.task.margin(self.logits(part), wanted) for part, wanted in parts])
        return Attacked(rounded, margin < 0, margin)


def check(target: Target, images: Tensor, labels: Tensor) -> None:
    """Refuse what is not a batch of stored images with their labels.

    Raises:
        ValueError: wrong shape or type, no image at all, or values that no file holds.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or images.dtype != torch.float32:
        shape = f"{tuple(images.shape)} {images.dtype}"
        raise ValueError(f"images must be (N, 1 or 3, rows, columns) float32, got {shape}")
    if not images.numel():
        raise ValueError("there is no image to attack")
    target.task.check(labels, len(images))
    if not torch.equal(images, images.round()):
        raise ValueError("images must be stored values: whole numbers")
    if images.min() < target.low or images.max() > target.high:
        raise ValueError(f"images must lie between {target.low:g} and {target.high:g}: others cannot be stored")
