"""What one shared pass over the reference model saw; every detector reads from it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, unique

import torch
from torch import Tensor

from detectors.errors import InputError

LEVEL = 1 / 255
"""One 8-bit grey level of the display window, in which budgets and noise are stated."""


@unique
class Signal(Enum):
    """What a detector may need from the shared pass."""

    LOGITS = "logits"
    FEATURES = "features"
    INPUT_GRADIENT = "input_gradient"
    SHIFTS = "shifts"
    TWINS = "twins"


@dataclass(frozen=True, slots=True)
class Span:
    """What black and white are in the model's input, channel by channel: its range, less mean, over deviation.

    Inside this room every image is in units of the display window, 0 to 1, so that one grey level is the same number
    for every model.
    """

    low: tuple[float, ...]
    """One a channel: what the lower end of the window is given to the model as."""
    high: tuple[float, ...]
    """The same of the upper end."""

    def __post_init__(self) -> None:
        if not self.low or len(self.low) != len(self.high):
            raise InputError("a span needs a lower and an upper end for each channel")
        if not all(low < high for low, high in zip(self.low, self.high, strict=True)):
            raise InputError(f"the input range from {self.low} to {self.high} is empty")

    def to_unit(self, images: Tensor) -> Tensor:
        """(N, C, H, W) as the model takes them, to 0 to 1."""
        low, high = self._ends(images)
        return (images - low) / (high - low)

    def from_unit(self, images: Tensor) -> Tensor:
        """(N, C, H, W) from 0 to 1, to what the model takes."""
        low, high = self._ends(images)
        return images * (high - low) + low

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.low).view(1, -1, 1, 1), like.new_tensor(self.high).view(1, -1, 1, 1)


@dataclass(frozen=True, slots=True)
class Observation:
    """One batch, seen once. A signal that nobody needed is empty or None."""

    images: Tensor
    """(N, C, H, W) float32, in units of the display window: 0 to 1."""
    logits: Tensor
    """(N, K) of the protected model."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """By tap, (N, D): maps are averaged over space, tokens over the sequence."""
    input_gradient: Tensor | None = None
    """(N, C, H, W): gradient of the top margin by `images`, held constant in any further backward pass."""
    shifts: Mapping[str, Tensor] = field(default_factory=dict)
    """By neighbour, (N, K): logits of the protected model on the changed image."""
    twins: Mapping[str, Tensor] = field(default_factory=dict)
    """By twin, (N, K): logits of the hardened model."""
    twin_features: Mapping[str, Tensor] = field(default_factory=dict)
    """By twin, (N, D): pooled features of the hardened model."""

    @property
    def predictions(self) -> Tensor:
        """(N,) int64, the protected model's class of each image."""
        return self.logits.argmax(1)


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """How far a class leads the best of the others.

    Args:
        logits: (N, K), K at least 2.
        classes: (N,) int64.

    Returns:
        (N,), negative where another class leads.
    """
    assert logits.ndim == 2
    assert logits.shape[1] >= 2
    chosen = logits.gather(1, classes[:, None])[:, 0]
    others = logits.scatter(1, classes[:, None], -torch.inf).amax(1)
    return chosen - others
