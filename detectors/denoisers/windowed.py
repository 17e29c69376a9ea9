"""Denoisers that only have settings: they work in units of the display window, whatever the model takes."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, Self

import torch
from torch import Tensor

from detectors.denoisers.denoiser import check
from detectors.errors import InputError, NotFittedError
from detectors.observation import Span

SPAN = "span"
"""Under this key a state keeps the span of the images, (2, C)."""


@dataclass(frozen=True)
class Windowed(ABC):
    """A filter of images in 0 to 1, for images as a model takes them; its fields are its settings, all above zero."""

    span: Span
    """What black and white are in the model's input."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    surrogate: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        for setting, value in self._settings().items():
            if not value > 0:
                raise InputError(f"{self.name}: {setting} must be above zero, not {value}")

    @abstractmethod
    def restore(self, unit: Tensor) -> Tensor:
        """Denoise (N, C, H, W) images, 0 to 1, of 32 or 64 bits; never rounded to grey levels."""

    def __call__(self, images: Tensor) -> Tensor:
        """Denoise (N, C, H, W) images as the model takes them; computed in 32 bits at least."""
        check(images, len(self.span.low))
        unit = self.span.to_unit(images.to(torch.promote_types(images.dtype, torch.float32)))
        return self.span.from_unit(self.restore(unit).clamp(0, 1)).to(images.dtype)

    def state(self) -> dict[str, Tensor]:
        """The settings, and the span (2, C)."""
        settings = {name: _exact(value) for name, value in self._settings().items()}
        return settings | {SPAN: spelled_span(self.span)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The same filter again.

        Raises:
            NotFittedError: a setting is missing.
        """
        try:
            settings = {each.name: state[each.name].item() for each in fields(cls) if each.name != SPAN}
            return cls(read_span(state[SPAN]), **settings)
        except KeyError as error:
            raise NotFittedError(f"{cls.name} lacks {error}") from error

    def _settings(self) -> dict[str, float]:
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != SPAN}


def spelled_span(span: Span) -> Tensor:
    """A span as a tensor, (2, C), so that a state can carry it."""
    return torch.tensor([span.low, span.high], dtype=torch.float64)


def read_span(ends: Tensor) -> Span:
    """The span that `spelled_span` wrote."""
    low, high = ends.tolist()
    return Span(tuple(low), tuple(high))


def _exact(value: float) -> Tensor:
    """A number as a tensor that gives it back unchanged: an integer as one, any other in 64 bits."""
    return torch.tensor(value, dtype=torch.int64 if isinstance(value, int) else torch.float64)
