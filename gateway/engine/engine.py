"""The contract of an engine: it examines images in batches, somewhere, and answers each with its evidence."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from detectors.mondrian import Category
from gateway.case import Evidence, Image
from gateway.deadline import Deadline


class EngineError(Exception):
    """Root of what a future of an engine may hold instead of evidence."""


class WorkerLostError(EngineError):
    """The process that examined the batch died, or was ended because it hung."""


class ExpiredError(EngineError):
    """The caller's deadline passed before the image reached the worker."""


class ExaminationError(EngineError):
    """A detector could not look at the image, or gave something that is no score."""


class GreyZone(NamedTuple):
    """The p-values at which a second, denoised look is wanted: above the first, up to and with the second."""

    above: float
    """The false-positive rate of the policy: at or below it the image is suspect, and nothing can clear it."""
    up_to: float

    def holds(self, p_value: float) -> bool:
        """Whether a p-value lies in the zone."""
        return self.above < p_value <= self.up_to


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Where the detectors disagree about an image (`detectors.heat`)."""

    frame: int
    """The loudest of its frames, which the map is of."""
    values: NDArray[np.float32]
    """(rows, columns) of the model's input, at least 0: the change in the model's lead that is owed to each pixel."""
    usual: float | None
    """How bright the brightest place of a clean scan's map gets; None where the artefact does not say."""


class Engine(Protocol):
    """Examines images; safe to call from many threads at once."""

    @property
    def ready(self) -> bool:
        """Whether a worker has loaded every model and answers."""

    def submit(
        self,
        image: Image,
        deadline: Deadline,
        grey: GreyZone | None,
        caller: str = "",
        seeds: Sequence[int] = (),
        claims: tuple[Category, ...] | None = None,
    ) -> Future[Evidence]:
        """Queue an image of one of the engine's models.

        A series of frames is judged as one: its p-value is the smallest of its frames' times their number
        (Bonferroni), so that it stays valid however the frames depend on each other.

        Args:
            image: what the model would see.
            deadline: an image whose caller has gone is dropped before it costs anything.
            grey: where denoised predictions are wanted; None for nowhere.
            caller: whose image it is; callers take turns.
            seeds: one signed 64-bit number a frame, from which random detectors draw; none where none draws.
            claims: the categories that it may be of, at least one; None where the model's detectors have none.

        Returns:
            The evidence, or an `EngineError`.

        Raises:
            Overloaded: the queue is full.
        """

    def explain(self, image: Image, deadline: Deadline) -> Future[HeatMap]:
        """Draw the map of an image while no scan waits to be examined.

        Args:
            image: as the model saw it.
            deadline: of who waits for the map.

        Returns:
            The map, or an `EngineError`.

        Raises:
            Overloaded: too many wait already.
        """
