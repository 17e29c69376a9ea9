"""What a benchmark hands back, and how the page of all of them is written."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"


@dataclass(frozen=True, slots=True)
class Target:
    """A figure that the product set itself, and what was measured."""

    what: str
    wanted: str
    measured: str
    met: bool


@dataclass(frozen=True, slots=True)
class Table:
    """One measurement: every case of it taken side by side in one run."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=tuple)
    targets: Sequence[Target] = field(default_factory=tuple)


def rounds(
    cases: Mapping[str, Callable[[], object]], count: int, *, warm: int = 1, times: Mapping[str, int] | None = None
) -> dict[str, list[float]]:
    """Seconds of each case, taken in turn `count` times, so that what slows the machine slows all of them.

    A case in `times` runs that often in each of its turns, and its mean is taken: what is short is measured warm.
    """
    times = times or {}
    for _ in range(warm):
        for run in cases.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(count):
        for name, run in cases.items():
            repeat = times.get(name, 1)
            started = perf_counter()
            for _ in range(repeat):
                run()
            seconds[name].append((perf_counter() - started) / repeat)
    return seconds


def ratio(case: Sequence[float], base: Sequence[float]) -> float:
    """Median over the rounds of one case's time by another's."""
    return statistics.median(mine / theirs for mine, theirs in zip(case, base, strict=True))


def milliseconds(seconds: Sequence[float]) -> str:
    """The median, as people read it."""
    return f"{1000 * statistics.median(seconds):.3g}"


def machine() -> str:
    """What the figures were taken on."""
    cpu = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    memory = next(
        (int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0.0
    )
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "onnxruntime-gpu", "grpcio", "cryptography"))
    return (
        f"{cpu}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB; {platform.system()} {platform.machine()}, "
        f"Python {platform.python_version()}, {versions}."
    )


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def markdown(table: Table) -> str:
    """The table as a section of the page."""
    lines = [f"## {table.title}", ""]
    lines += ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    lines += ["| " + " | ".join(row) + " |" for row in table.rows]
    lines += [line for note in table.notes for line in ("", note)]
    if table.targets:
        lines += ["", "| target | wanted | measured | |", "|---|---|---|---|"]
        lines += [f"| {t.what} | {t.wanted} | {t.measured} | {'met' if t.met else 'not met'} |" for t in table.targets]
    return "\n".join(lines) + "\n"


def hand_back(table: Table) -> None:
    """Print the table: for people on a terminal, as JSON for `run.py`."""
    print(json.dumps(asdict(table)) if "--json" in sys.argv else markdown(table))


def read_back(document: str) -> Table:
    """The table that `hand_back` printed as JSON."""
    fields = json.loads(document)
    return Table(**{**fields, "targets": [Target(**target) for target in fields["targets"]]})
