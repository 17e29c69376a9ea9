"""What every detector promises, how one is made, and the score that it gives."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from detectors.material import Material
from detectors.observation import Needs, Observation


@dataclass(frozen=True, slots=True)
class Score:
    """One number an image; larger is more suspicious. It has no threshold: that belongs to a calibration."""

    detector: str
    """Name of the detector that gave it."""
    values: Tensor
    """(N,) floating, finite."""


class Detector(Protocol):
    """Fitted: reads an observation, gives a score; a torch function that keeps the graph."""

    @property
    def name(self) -> str:
        """The name in reports, metrics and manifests."""
        ...

    @property
    def needs(self) -> Needs:
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


class ReportedOnly:
    """Marks a detector that speaks of where the pixels come from, not of whether somebody attacked the model.

    Blur, another compression, another scanner make it loud, so it is shown to people beside the verdict; an ensemble
    refuses it in a channel, whoever puts it there.
    """


class Method(Protocol):
    """How a detector comes to be; most are the class of their detector, which fits and restores itself."""

    @property
    def name(self) -> str:
        """The name of the detector that it makes."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same observation would be scored differently."""
        ...

    @property
    def needs(self) -> Needs:
        """What its detectors read."""
        ...

    def fit(self, material: Material) -> Detector:
        """Fit on one part of the clean scans.

        Raises:
            InputError: too little to fit on.
        """
        ...

    def from_state(self, state: dict[str, Tensor]) -> Detector:
        """The fitted detector again."""
        ...


def spelled(name: str) -> Tensor:
    """A name as a tensor of its UTF-8 bytes, so that a state can carry it."""
    return torch.tensor(list(name.encode()), dtype=torch.uint8)


def read_name(letters: Tensor) -> str:
    """The name that `spelled` wrote."""
    return bytes(letters.tolist()).decode()
