"""What every detector promises, and the score that it gives."""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from detectors.observation import Observation, Signal


@dataclass(frozen=True, slots=True)
class Score:
    """One number an image; larger is more suspicious. It has no threshold: that belongs to a calibration."""

    detector: str
    """Name of the detector that gave it."""
    values: Tensor
    """(N,) floating, finite."""


class Detector(Protocol):
    """Reads an observation, gives a score; a torch function that keeps the graph."""

    @property
    def name(self) -> str:
        """The name in reports, metrics and manifests."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same observation would be scored differently."""
        ...

    @property
    def needs(self) -> frozenset[Signal]:
        """What it reads; the probe computes nothing else."""
        ...

    def score(self, seen: Observation) -> Score:
        """Score each image of the batch.

        Raises:
            NotFittedError: a signal or a fitted number is missing.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that fitting found, as tensors."""
        ...

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        ...


def spelled(name: str) -> Tensor:
    """A name as a tensor of its UTF-8 bytes, so that a state can carry it."""
    return torch.tensor(list(name.encode()), dtype=torch.uint8)


def read_name(letters: Tensor) -> str:
    """The name that `spelled` wrote."""
    return bytes(letters.tolist()).decode()
