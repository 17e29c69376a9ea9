"""A progress display for work that takes minutes: one bar a stage and how long it will take in all, on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

Watch = Callable[[str, float], None]
"""Told the name of a stage and the share of it that is done."""
Expect = Callable[[Mapping[str, float]], None]
"""Told how many seconds each stage will take, as far as that is known."""

_ALL = "in all"
_SURE = 0.02
"""Share of the forecast work after which the speed so far corrects the forecast."""


class Display(Protocol):
    """Shows how far the work is."""

    def __call__(self, stage: str, share: float) -> None:
        """`share` of the stage is done."""

    def expect(self, stages: Mapping[str, float]) -> None:
        """The stages will take so many seconds each."""


@dataclass(slots=True)
class Ahead:
    """How long it will take: what was forecast, corrected by how long it has taken so far."""

    stages: dict[str, float] = field(default_factory=dict)
    """Seconds by stage."""
    _done: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def expect(self, stages: Mapping[str, float]) -> None:
        """The clock runs from now on."""
        self.stages = dict(stages)
        self._began = time.monotonic()

    def note(self, stage: str, share: float) -> None:
        """`share` of a stage is done."""
        if stage in self.stages:
            self._done[stage] = share

    @property
    def share(self) -> float:
        """Of all that was forecast, what is done."""
        return self._seconds_done() / max(sum(self.stages.values()), 1e-9)

    def left(self) -> float:
        """Seconds, about."""
        done, whole = self._seconds_done(), sum(self.stages.values())
        pace = (time.monotonic() - self._began) / done if done > _SURE * whole else 1.0
        return (whole - done) * pace

    def _seconds_done(self) -> float:
        return sum(self.stages[stage] * share for stage, share in self._done.items())


@contextmanager
def progress() -> Iterator[Display]:
    """Show a bar for each stage as it is told of; what is yielded is told the stage and its share.

    Where stderr is no terminal, a line is written when a stage begins and at each quarter of it.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[left]}"), console=console) as shown:
        yield _Bars(shown)


class _Bars:
    """For a terminal."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._tasks: dict[str, TaskID] = {}
        self._ahead = Ahead()

    def __call__(self, stage: str, share: float) -> None:
        self._ahead.note(stage, share)
        self._update(stage, share)
        if self._ahead.stages:
            self._update(_ALL, self._ahead.share, f"about {duration(self._ahead.left())} left")

    def expect(self, stages: Mapping[str, float]) -> None:
        self._ahead.expect(stages)
        self._update(_ALL, 0.0, f"about {duration(self._ahead.left())} left")

    def _update(self, stage: str, share: float, left: str = "") -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._shown.add_task(stage, total=1.0, left="")
        self._shown.update(self._tasks[stage], completed=share, left=left)


class _Lines:
    """For a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._told: dict[str, int] = {}
        self._began = time.monotonic()
        self._ahead = Ahead()

    def __call__(self, stage: str, share: float) -> None:
        self._ahead.note(stage, share)
        quarter = int(4 * share)
        if quarter > self._told.get(stage, -1):
            self._told[stage] = quarter
            left = f", about {duration(self._ahead.left())} left" if self._ahead.stages else ""
            self._say(f"{stage} {25 * quarter} %{left}")

    def expect(self, stages: Mapping[str, float]) -> None:
        self._ahead.expect(stages)
        self._say(f"about {duration(self._ahead.left())} {_ALL}")

    def _say(self, text: str) -> None:
        self._console.print(f"{time.monotonic() - self._began:7.0f} s  {text}", highlight=False)


def duration(seconds: float) -> str:
    """As people say it: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
