"""Measures whole studies on drawn slices with the bundled detectors, and writes docs/results-study.md: `make study`."""

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from detectors.calibration import Guarantee, smallest
from gateway.study.fusion import fuse
from lab import phantoms
from lab.attacks.pgd import PGD
from lab.phantom_detectors import FPR, split_of
from lab.results import Bench
from lab.seeds import seeds_of
from lab.statistics import clopper_pearson
from lab.workbench import BATCH

RATE = 0.05
"""The false discovery rate."""
SIZES = (20, 100, 500)
"""Slices of a study."""
LEVELS = (2.0, 4.0, 8.0)
"""Budgets of the attack, in 8-bit grey levels of the window."""
SKIP = 12_000
"""Seeds of `test` that other measurements are taken from lie before these."""
REPORT = Path("docs/results-study.md")

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Pool:
    """Slices that studies are drawn from: what the detectors said of each."""

    p_values: NDArray[np.float64]
    """(N,): with which each goes into its study's."""
    floor: float
    """Where ranks end."""

    @property
    def ranks(self) -> NDArray[np.float64]:
        """(N,): of each its rank alone."""
        return np.maximum(self.p_values, self.floor)


@dataclass(frozen=True, slots=True)
class Row:
    """Studies of one size: how often each way of judging called one suspect, of how many."""

    size: int
    what: str
    studies: int
    any_slice: int
    """Some slice has p <= the false-positive rate."""
    ranks: int
    """Fused from ranks alone."""
    fused: int
    framed: int
    """Flagged as frames of one object, by the loudest at the rate of a single scan (Bonferroni)."""
    named: int | None
    """Of those fused, in how many the bad slice is among the named ones; None where there is none."""


@click.command()
@click.option("--assets", type=click.Path(exists=True, path_type=Path), default=phantoms.ASSETS, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=REPORT, show_default=True)
@click.option("--clean", "n_clean", default=4000, show_default=True, help="clean slices that studies are drawn from")
@click.option("--attacked", "n_attacked", default=60, show_default=True, help="slices to attack")
@click.option("--studies", default=1000, show_default=True, help="drawn for each row")
@click.option("--workers", default=0, show_default=True, help="processes that draw; 0: one a core")
@click.option("--threads", default=0, show_default=True, help="threads that measure; 0: as torch chooses")
def main(*, assets: Path, out: Path, n_clean: int, n_attacked: int, studies: int, workers: int, threads: int) -> None:
    """Draw studies of clean slices, put one attacked slice into each, and see which are called suspect."""
    if threads:
        torch.set_num_threads(threads)
    bench = Bench.open(assets)
    facts = bench.artefact.manifest
    floor = smallest(int(facts["n_b"]), Guarantee(facts["guarantee"]))
    clean = _clean(bench, phantoms.seeds("test", n_clean, skip=SKIP), floor, workers)
    bad = {level: _attacked(bench, level, n_attacked, floor) for level in LEVELS}
    random = np.random.default_rng(0)
    rows = [_measured(random, clean, None, "clean", size, studies) for size in SIZES]
    rows += [
        _measured(random, clean, pool, f"one slice, PGD {level:g}", size, studies)
        for level, pool in bad.items()
        for size in SIZES
        if len(pool.p_values)
    ]
    command = f"python -m lab.study --clean {n_clean} --attacked {n_attacked} --studies {studies}"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_report(bench, clean, bad, floor, rows, command))


def _clean(bench: Bench, seeds: range, floor: float, workers: int) -> Pool:
    """What the detectors say of fresh clean slices, drawn a part at a time so that memory stays small."""
    parts = []
    with console.status(f"{len(seeds)} clean slices"):
        for first in range(0, len(seeds), phantoms.AHEAD):
            images = split_of(seeds[first : first + phantoms.AHEAD], bench.profile, workers).images
            parts.append(_examined(bench, images))
    return Pool(np.concatenate(parts), floor)


def _attacked(bench: Bench, level: float, count: int, floor: float) -> Pool:
    """The same of slices whose diagnosis an attack has turned, stored and rendered as the gateway would have them."""
    seeds = phantoms.seeds("test", count, skip=SKIP // 2)
    stored = torch.from_numpy(np.stack(list(phantoms.stored(seeds))).astype(np.float32))[:, None]
    with console.status(f"PGD at {level:g} grey levels"):
        found = PGD(eps=level, steps=20)(bench.target, stored, torch.from_numpy(phantoms.labels(seeds)))
        images = found.images[found.success]
        if not len(images):
            return Pool(np.empty(0), floor)
        with torch.no_grad():
            rendered = torch.cat([bench.target.view(part) for part in torch.split(images, 16)])
    return Pool(_examined(bench, rendered), floor)


def _examined(bench: Bench, rendered: Tensor) -> NDArray[np.float64]:
    """p-values (N,) as the detection stage would have them; rendered (N, channels, height, width)."""
    probe = bench.ensemble.probe
    p_values: list[float] = []
    for part in torch.split(probe.span.from_unit(probe.span.to_unit(rendered)), BATCH):
        seen = probe.observe(part, bench.ensemble.deciding_needs, seeds=seeds_of(part))
        with torch.no_grad():
            statistic = bench.ensemble.statistic(seen)
        p_values += bench.ensemble.conformal.p_value(statistic, beyond=True).tolist()
    return np.array(p_values, np.float64)


def _measured(random: np.random.Generator, clean: Pool, bad: Pool | None, what: str, size: int, studies: int) -> Row:
    """Draw studies without putting a slice into one of them twice, and judge each in three ways."""
    any_slice = ranks = fused = framed = named = 0
    for _ in range(studies):
        drawn = Pool(clean.p_values[random.choice(len(clean.p_values), size, replace=False)], clean.floor)
        place = int(random.integers(size))
        if bad is not None:
            drawn.p_values[place] = random.choice(bad.p_values)
        together = fuse(drawn.p_values.tolist())
        by_rank = fuse(drawn.ranks.tolist())
        assert together is not None
        assert by_rank is not None
        any_slice += bool((drawn.p_values <= FPR).any())
        ranks += by_rank.p_value <= RATE
        fused += together.p_value <= RATE
        framed += bool(size * drawn.p_values.min() <= FPR)
        named += together.adjusted[place] <= RATE
    return Row(size, what, studies, any_slice, ranks, fused, framed, None if bad is None else named)


def _report(bench: Bench, clean: Pool, bad: dict[float, Pool], floor: float, rows: Sequence[Row], command: str) -> str:
    """The document; every figure comes from a measurement."""
    facts = bench.artefact.manifest
    lines = [
        "# Whole studies of drawn CT slices",
        "",
        f"Written by `{command}` (`make study`); do not edit. Python {platform.python_version()},",
        f"torch {torch.__version__}, {os.cpu_count()} cores, CPU. Artefact of {facts['created']}, for the model with",
        f"SHA-256 {facts['model_sha256'][:16]}…, calibrated on {facts['n_b']} clean slices: no rank is below "
        f"{floor:.2g}.",
        "",
        "Phantoms are drawn, not acquired, and the slices of these studies are independent: a study of one patient is",
        "not. That neighbouring slices add up to no alarm is a property test (`tests/gateway/test_fusion.py`). The",
        "attacker here knows the model and not the detectors ([limits](limits.md)).",
        "",
        f"A study is called suspect at a false discovery rate of {RATE:g} ([policy](policy.md)). *Some slice* is what",
        f"judging each slice on its own at p <= {FPR:g} comes to; *ranks alone* is the fusion without the tail beyond",
        "the last clean scan. *Named* is how often the attacked slice is among those that the fusion points at. *One",
        f"object* is what becomes of the same slices as frames of one object, flagged at p <= {FPR:g} by the loudest.",
        "Intervals are 95 % Clopper-Pearson over the studies, which share their slices: the true ones are wider.",
        "",
        "| study | slices | some slice | ranks alone | together | named | one object |",
        "|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
        "",
        "## The tail beyond the last clean scan",
        "",
        f"Share of {len(clean.p_values)} clean slices, and of the successfully attacked ones, whose p-value is at most",
        "so much. On clean slices it should be that much or less; below the smallest rank only the tail speaks.",
        "",
        *_tail_table(clean, bad),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    named = "" if row.named is None else _share(row.named, row.studies)
    cells = [row.what, str(row.size), *(_share(count, row.studies) for count in (row.any_slice, row.ranks, row.fused))]
    return "| " + " | ".join([*cells, named, _share(row.framed, row.studies)]) + " |"


def _tail_table(clean: Pool, bad: dict[float, Pool]) -> list[str]:
    pools = {"clean": clean, **{f"PGD {level:g}": pool for level, pool in bad.items() if len(pool.p_values)}}
    limits = (0.05, 0.01, 0.0025, 0.001, 0.0001, 0.00001)
    return [
        "| slices | " + " | ".join(f"{limit:g}" for limit in limits) + " |",
        "|---" * (len(limits) + 1) + "|",
        *(
            f"| {name} ({len(pool.p_values)}) | "
            + " | ".join(_share(int((pool.p_values <= limit).sum()), len(pool.p_values)) for limit in limits)
            + " |"
            for name, pool in pools.items()
        ),
    ]


def _share(count: int, of: int) -> str:
    found = clopper_pearson(count, of)
    return f"{found['rate']:.3f} ({found['low']:.3f}-{found['high']:.3f})"


if __name__ == "__main__":
    main()
