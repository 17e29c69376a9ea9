"""Which images go to the worker together, and when; pure logic over one bounded queue a model, without a clock."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.deadline import Deadline
from gateway.errors import Overloaded

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Entry(Generic[T]):
    """One submission that waits."""

    model: str
    images: int
    """Frames of the submission; they stay together."""
    deadline: Deadline
    arrived_at: float
    """Seconds on the monotonic clock."""
    payload: T


class Batcher(Generic[T]):
    """Closes a batch at `size_max` images or `wait_s_max` seconds after its first; each holds one model's alone.

    While the worker is busy a batch that is not full stays open: it could not start earlier, and may still grow.
    Models take turns by the age of their oldest submission, so none can starve another. Not thread-safe.
    """

    def __init__(self, *, size_max: int, wait_s_max: float, queue_max: int) -> None:
        self._size_max = size_max
        self._wait_s_max = wait_s_max
        self._queue_max = queue_max
        self._queues: dict[str, deque[Entry[T]]] = {}
        self._images: dict[str, int] = {}
        self._dropped: list[Entry[T]] = []

    @property
    def depth(self) -> int:
        """Submissions that wait."""
        return sum(map(len, self._queues.values()))

    def put(self, entry: Entry[T]) -> None:
        """Queue a submission; raises `Overloaded` where the queue is full of callers who still wait."""
        if self.depth >= self._queue_max:
            self._drop_expired()
        if self.depth >= self._queue_max:
            raise Overloaded(f"{self._queue_max} scans wait for the detectors already")
        self._queues.setdefault(entry.model, deque()).append(entry)
        self._images[entry.model] = self._images.get(entry.model, 0) + entry.images

    def take(self, now: float, *, idle: bool) -> list[Entry[T]]:
        """The next batch, oldest submission first; empty where none is due.

        Args:
            now: seconds on the monotonic clock.
            idle: the worker has nothing to do, so a batch whose wait is over goes even if it is not full.
        """
        while (model := self._due(now, idle=idle)) is not None:
            if batch := self._close(model):
                return batch
        return []

    def take_dropped(self) -> list[Entry[T]]:
        """Submissions that were taken out of the queue because their callers have gone; each is given once."""
        dropped, self._dropped = self._dropped, []
        return dropped

    def take_all(self) -> list[Entry[T]]:
        """Empty the queue, at the end."""
        entries = [entry for queue in self._queues.values() for entry in queue]
        self._queues.clear()
        self._images.clear()
        return entries

    def due_at(self) -> float | None:
        """When the wait of the oldest submission is over; None where nothing waits."""
        oldest = self._oldest()
        return None if oldest is None else self._queues[oldest][0].arrived_at + self._wait_s_max

    def _due(self, now: float, *, idle: bool) -> str | None:
        """The model whose batch goes next."""
        oldest = self._oldest()
        if oldest is None or self._images[oldest] >= self._size_max:
            return oldest
        if not idle:
            return None  # nobody overtakes the oldest for a place behind a busy worker
        if now >= self._queues[oldest][0].arrived_at + self._wait_s_max:
            return oldest
        return self._oldest(full=True)

    def _oldest(self, *, full: bool = False) -> str | None:
        models = [
            model
            for model, queue in self._queues.items()
            if queue and (not full or self._images[model] >= self._size_max)
        ]
        return min(models, key=lambda model: self._queues[model][0].arrived_at, default=None)

    def _close(self, model: str) -> list[Entry[T]]:
        """Take what fits; a submission larger than a whole batch goes alone."""
        queue, images = self._queues[model], 0
        batch: list[Entry[T]] = []
        while queue and (not batch or images + queue[0].images <= self._size_max):
            entry = queue.popleft()
            self._images[model] -= entry.images
            if entry.deadline.expired:
                self._dropped.append(entry)
                continue
            batch.append(entry)
            images += entry.images
        return batch

    def _drop_expired(self) -> None:
        for model, queue in self._queues.items():
            kept: deque[Entry[T]] = deque()
            for entry in queue:
                (self._dropped if entry.deadline.expired else kept).append(entry)
            self._queues[model] = kept
            self._images[model] = sum(entry.images for entry in kept)
