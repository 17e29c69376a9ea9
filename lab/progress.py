"""A progress display for work that takes minutes: one bar a stage, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

Watch = Callable[[str, float], None]
"""Told the name of a stage and the share of it that is done."""


@contextmanager
def progress() -> Iterator[Watch]:
    """Show a bar for each stage as it is told of; what is yielded is told the stage and its share."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as display:

        def watch(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage, total=1.0)
            display.update(tasks[stage], completed=share)

        yield watch
