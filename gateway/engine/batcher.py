"""Which images go to the worker together, and when; pure logic over one bounded queue a model, without a clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
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
    caller: str = ""
    """Whose scan it is."""


class Queue(Generic[T]):
    """What waits for one model, in a line for each caller; who was served longest ago is next."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Entry[T]]] = {}
        self._turns: dict[str, int] = {}
        self._turn = 0
        self.images = 0
        """Frames of all that waits."""

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Entry[T]]:
        for line in self._lines.values():
            yield from line

    @property
    def oldest_at(self) -> float:
        """When the entry arrived that waits longest; there must be one."""
        return min(line[0].arrived_at for line in self._lines.values())

    @property
    def next(self) -> Entry[T]:
        """The entry whose turn it is; there must be one."""
        return self._lines[self._next_caller()][0]

    def put(self, entry: Entry[T]) -> None:
        """Let it wait at the end of its caller's line."""
        self._lines.setdefault(entry.caller, deque()).append(entry)
        self.images += entry.images

    def pop(self) -> Entry[T]:
        """Take the entry whose turn it is."""
        caller = self._next_caller()
        line = self._lines[caller]
        entry = line.popleft()
        self._turn += 1
        self._turns[caller] = self._turn
        if not line:  # who has nothing left to wait for is as good as new
            del self._lines[caller], self._turns[caller]
        self.images -= entry.images
        return entry

    def _next_caller(self) -> str:
        return min(self._lines, key=lambda caller: (self._turns.get(caller, 0), self._lines[caller][0].arrived_at))


class Batcher(Generic[T]):
    """Closes a batch at `size_max` images or `wait_s_max` seconds after its first; each holds one model's alone.

    While the worker is busy a batch that is not full stays open: it could not start earlier, and may still grow.
    Models take turns by the age of their oldest submission, so none can starve another; callers of one model take turns
    one by one, so that who sends a study delays who sends a slice by one slice. Not thread-safe.
    """

    def __init__(self, *, size_max: int, wait_s_max: float, queue_max: int) -> None:
        self._size_max = size_max
        self._wait_s_max = wait_s_max
        self._queue_max = queue_max
        self._queues: dict[str, Queue[T]] = {}
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
        self._queues.setdefault(entry.model, Queue()).put(entry)

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
        return entries

    def due_at(self) -> float | None:
        """When the wait of the oldest submission is over; None where nothing waits."""
        oldest = self._oldest()
        return None if oldest is None else self._queues[oldest].oldest_at + self._wait_s_max

    def _due(self, now: float, *, idle: bool) -> str | None:
        """The model whose batch goes next."""
        oldest = self._oldest()
        if oldest is None or self._queues[oldest].images >= self._size_max:
            return oldest
        if not idle:
            return None  # nobody overtakes the oldest for a place behind a busy worker
        if now >= self._queues[oldest].oldest_at + self._wait_s_max:
            return oldest
        return self._oldest(full=True)

    def _oldest(self, *, full: bool = False) -> str | None:
        models = [
            model for model, queue in self._queues.items() if queue and (not full or queue.images >= self._size_max)
        ]
        return min(models, key=lambda model: self._queues[model].oldest_at, default=None)

    def _close(self, model: str) -> list[Entry[T]]:
        """Take what fits; a submission larger than a whole batch goes alone."""
        queue, images = self._queues[model], 0
        batch: list[Entry[T]] = []
        while queue and (not batch or images + queue.next.images <= self._size_max):
            entry = queue.pop()
            if entry.deadline.expired:
                self._dropped.append(entry)
                continue
            batch.append(entry)
            images += entry.images
        return batch

    def _drop_expired(self) -> None:
        for model, queue in self._queues.items():
            kept: Queue[T] = Queue()
            for entry in queue:
                if entry.deadline.expired:
                    self._dropped.append(entry)
                else:
                    kept.put(entry)
            self._queues[model] = kept
