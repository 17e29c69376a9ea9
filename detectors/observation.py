"""What one shared pass over the reference model saw; every detector reads from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, unique
from typing import Protocol, Self

import torch
from torch import Tensor

from detectors.errors import InputError, NotFittedError
from detectors.models.outputs import Task, decided, margin

LEVEL = 1 / 255
"""One 8-bit grey level of the display window, in which budgets and noise are stated."""


@unique
class Signal(Enum):
    """What a detector may need from the shared pass, beside the model's logits on image and neighbours."""

    FEATURES = "features"
    NEIGHBOUR_FEATURES = "neighbour_features"
    INPUT_GRADIENT = "input_gradient"
    TWINS = "twins"


class Neighbour(Protocol):
    """A small change that should not matter to a diagnosis; on the changed image the model is asked again."""

    @property
    def name(self) -> str:
        """Says everything about it: two neighbours of one name change an image alike."""
        ...

    @property
    def surrogate(self) -> str | None:
        """What stands in for the gradient; None where the gradient is the true one."""
        ...

    @property
    def random(self) -> bool:
        """Whether it draws from the seeds."""
        ...

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Change (N, C, H, W) images, 0 to 1; `seeds` (N,) int64, one an image, for those that draw."""
        ...


@dataclass(frozen=True, slots=True)
class Needs:
    """What somebody reads of an observation; the probe computes nothing else."""

    signals: frozenset[Signal] = frozenset()
    neighbours: tuple[Neighbour, ...] = ()
    """The model's logits on each of these."""

    def __or__(self, other: "Needs") -> "Needs":
        """The union: every signal and every neighbour once."""
        named = {each.name: each for each in (*self.neighbours, *other.neighbours)}
        return Needs(self.signals | other.signals, tuple(named.values()))

    @property
    def random(self) -> bool:
        """Whether anything here draws from the seeds."""
        return any(each.random for each in self.neighbours)


def union(needs: Iterable[Needs]) -> Needs:
    """Everything that any of them reads."""
    whole = Needs()
    for each in needs:
        whole |= each
    return whole


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
        """(N, C, H, W) as the model takes them, to 0 to 1; themselves where that is no change."""
        if self._unit:
            return images
        low, high = self._ends(images)
        return (images - low) / (high - low)

    def from_unit(self, images: Tensor) -> Tensor:
        """(N, C, H, W) from 0 to 1, to what the model takes; themselves where that is no change."""
        if self._unit:
            return images
        low, high = self._ends(images)
        return images * (high - low) + low

    @property
    def _unit(self) -> bool:
        return not any(self.low) and all(high == 1 for high in self.high)

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.low).view(1, -1, 1, 1), like.new_tensor(self.high).view(1, -1, 1, 1)


@dataclass(frozen=True, slots=True)
class Observation:
    """One batch, seen once. A signal that nobody needed is empty or None."""

    images: Tensor
    """(N, C, H, W) float32, in units of the display window: 0 to 1."""
    logits: Tensor
    """Of the protected model, in the form that `Task` gives: (N, K), or (N, K, H, W) of a segmentation."""
    task: Task = Task.MULTICLASS
    """What the model decides."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """By tap, from the input on, (N, D): maps are averaged over space, tokens over the sequence."""
    input_gradient: Tensor | None = None
    """(N, C, H, W): gradient of the decision's margin by `images`, held constant in any further backward pass."""
    neighbours: Mapping[str, Tensor] = field(default_factory=dict)
    """By neighbour: logits of the protected model on the changed image."""
    neighbour_features: Mapping[str, Tensor] = field(default_factory=dict)
    """By neighbour, (N, D): features of the last tap."""
    twins: Mapping[str, Tensor] = field(default_factory=dict)
    """By twin: logits of the hardened model."""
    twin_features: Mapping[str, Tensor] = field(default_factory=dict)
    """By twin, (N, D): pooled features of the hardened model."""

    @property
    def decision(self) -> Tensor:
        """The protected model's decision of each image, in the form that `Task` gives."""
        return decided(self.logits, self.task)

    @property
    def groups(self) -> Tensor:
        """(N,) int64: the class whose clean scans this one is compared with.

        The decided class; of several labels the likeliest; always 0 of a segmentation.
        """
        if self.task is Task.SEGMENTATION:
            return torch.zeros(len(self.images), dtype=torch.int64, device=self.images.device)
        return self.logits.argmax(1)

    @property
    def group_count(self) -> int:
        """How many values `groups` may take."""
        return 1 if self.task is Task.SEGMENTATION else self.logits.shape[1]

    @property
    def answer(self) -> tuple[Tensor, Task]:
        """(N, K) logits of the image as a whole, and what they decide: of a segmentation, the share of each class."""
        if self.task is not Task.SEGMENTATION:
            return self.logits, self.task
        return torch.softmax(self.logits, 1).flatten(2).mean(2).clamp_min(1e-12).log(), Task.MULTICLASS

    @property
    def lead(self) -> Tensor:
        """(N,) how firmly the model holds its own decision; never negative."""
        return self.lead_in(self.logits)

    def lead_in(self, logits: Tensor) -> Tensor:
        """(N,) how firmly other logits hold this decision; negative where they would decide otherwise."""
        return margin(logits, self.decision, self.task)

    def require_features(self, taps: Iterable[str]) -> None:
        """Raises `NotFittedError` where a tap that somebody was fitted on is not here."""
        if missing := sorted(set(taps) - set(self.features)):
            raise NotFittedError(f"the features of {', '.join(missing)} were not looked at")

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """One observation of several batches, in their order.

        Raises:
            InputError: there is none.
        """
        if not parts:
            raise InputError("no batch was observed")
        first = parts[0]

        def mapped(mappings: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
            return {name: torch.cat([each[name] for each in mappings]) for name in mappings[0]}

        gradients = [part.input_gradient for part in parts if part.input_gradient is not None]
        return cls(
            torch.cat([part.images for part in parts]),
            torch.cat([part.logits for part in parts]),
            first.task,
            mapped([part.features for part in parts]),
            torch.cat(gradients) if gradients else None,
            mapped([part.neighbours for part in parts]),
            mapped([part.neighbour_features for part in parts]),
            mapped([part.twins for part in parts]),
            mapped([part.twin_features for part in parts]),
        )

    def to(self, device: torch.device) -> Self:
        """The same on another device."""

        def moved(mapping: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(device) for name, value in mapping.items()}

        return type(self)(
            self.images.to(device), self.logits.to(device), self.task, moved(self.features),
            None if self.input_gradient is None else self.input_gradient.to(device),
            moved(self.neighbours), moved(self.neighbour_features), moved(self.twins), moved(self.twin_features),
        )  # fmt: skip
