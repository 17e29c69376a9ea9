"""A progress display for work that takes minutes: one bar a stage, on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn

Watch = Callable[[str, float], None]
"""Told the name of a stage and the share of it that is done."""


@contextmanager
def progress() -> Iterator[Watch]:
    """Show a bar for each stage as it is told of; what is yielded is told the stage and its share.

    Where stderr is no terminal, a line is written when a stage begins and at each quarter of it.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as display:

        def watch(stage: str, share: float) -> None:
            if stage not in tasks:
                tasks[stage] = display.add_task(stage, total=1.0)
            display.update(tasks[stage], completed=share)

        yield watch


def _lines(console: Console) -> Watch:
    """A watch for logs."""
    told: dict[str, int] = {}
    began = time.monotonic()

    def watch(stage: str, share: float) -> None:
        quarter = int(4 * share)
        if quarter > told.get(stage, -1):
            told[stage] = quarter
            console.print(f"{time.monotonic() - began:7.0f} s  {stage} {25 * quarter} %", highlight=False)

    return watch
