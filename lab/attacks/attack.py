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


class Attack(Protocol):
    """Configured once, then called on any number of images; its `repr` is the whole configuration.

    The threat: the attacker knows the model and its profile, and may change every stored value by at most the budget.
    What counts is the image that would lie in the file: rounded to storable values, within the budget, and only then
    shown to the model.
    """

    @property
    def name(self) -> str:
        """What a report calls it."""
        ...

    @property
    def eps(self) -> float:
        """Budget in the L-infinity norm, 8-bit grey levels of the window."""
        ...

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Attack images of known labels.

        Args:
            target: the model and the way to it.
            images: (N, 1, rows, columns) float32 stored values, whole numbers.
            labels: (N,) int64, what the model should go on to answer and the attacker does not want.

        Returns:
            The images as they would be stored, and which of them the model now gets wrong.
        """
        ...


@dataclass(frozen=True, slots=True)
class Attacked:
    """The outcome of an attack, judged after rounding."""

    images: Tensor
    """(N, 1, rows, columns) float32 stored values, whole numbers within the budget."""
    success: Tensor
    """(N,) bool: the model does not answer with the label."""
    margin: Tensor
    """(N,) float32: logit of the label less the greatest other; negative where the attack succeeded."""


@dataclass(frozen=True, slots=True)
class Target:
    """A model behind the gateway's rendering, and what a file of its modality can hold."""

    model: Callable[[Tensor], Tensor]
    """(N, channels, height, width) rendered images to (N, classes) logits, differentiable."""
    view: Callable[[Tensor], Tensor]
    """(N, 1, rows, columns) stored values to rendered images, differentiable."""
    level: float
    """Stored values in one 8-bit grey level of the window."""
    low: float
    """Least storable value."""
    high: float
    """Greatest storable value."""

    @classmethod
    def of_dicom(cls, model: Callable[[Tensor], Tensor], rendering: Rendering, profile: Profile) -> Self:
        """Return the target for objects whose headers say `rendering`.

        Raises:
            ValueError: lookup table or sigmoid between stored value and window: a grey level has no one size there.
        """
        line = rendering.affine(profile)
        if line is None or line[0] == 0:
            raise ValueError("a grey level has no fixed size in stored values: the way to the window is not linear")
        low, high = rendering.stored
        return cls(model, lambda x: render(x, rendering, profile), 1 / (255 * abs(line[0])), float(low), float(high))

    @classmethod
    def of_uint8(cls, model: Callable[[Tensor], Tensor], profile: Profile) -> Self:
        """Return the target for 8-bit grey images, where a stored value is a grey level."""
        return cls(model, lambda x: from_uint8(x, profile), 1.0, 0.0, 255.0)

    def logits(self, stored: Tensor) -> Tensor:
        """Return (N, classes): what the model says of (N, 1, rows, columns) stored values."""
        return self.model(self.view(stored))

    def budget(self, eps: float) -> float:
        """Return `eps` grey levels in stored values: whole ones, so that rounding never leaves the budget.

        Raises:
            ValueError: less than one storable step: no such attack can be written to a file.
        """
        whole = math.floor(eps * self.level + 1e-6)
        if whole < 1:
            raise ValueError(f"{eps:g} grey levels are less than one storable step here (a level is {self.level:.3g})")
        return float(whole)

    def judged(self, images: Tensor, labels: Tensor, *, batch: int) -> Attacked:
        """Round to storable values and see what the model makes of them."""
        rounded = images.round()
        with torch.no_grad():
            parts = zip(torch.split(rounded, batch), torch.split(labels, batch), strict=True)
            margin = torch.cat([margins(self.logits(part), wanted) for part, wanted in parts])
        return Attacked(rounded, margin < 0, margin)


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (N,): the logit of each label less the greatest other, from (N, classes) logits; below 0 is wrong."""
    mine = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return mine[:, 0] - others.amax(dim=1)


def check(images: Tensor, labels: Tensor) -> None:
    """Refuse what is not a batch of stored images with their labels.

    Raises:
        ValueError: wrong shape or type, or values that no file holds.
    """
    if images.ndim != 4 or images.shape[1] != 1 or images.dtype != torch.float32:
        raise ValueError(f"images must be (N, 1, rows, columns) float32, got {tuple(images.shape)} {images.dtype}")
    if labels.shape != (len(images),) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be ({len(images)},) int64, got {tuple(labels.shape)} {labels.dtype}")
    if not torch.equal(images, images.round()):
        raise ValueError("images must be stored values: whole numbers")
