"""Measures what rounds against an attacker who knows the fusion are worth: `python -m lab.sparring_results`."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from detectors.detector import Detector
from detectors.ensemble import Ensemble
from detectors.methods.fusion import Fusion
from detectors.models.outputs import decided
from detectors.observation import LEVEL
from lab import joining, phantoms
from lab.attacks.adaptive import Adaptive
from lab.measuring import flagged
from lab.phantom_detectors import FPR
from lab.progress import Watch, progress
from lab.results import Bench
from lab.sparring import LEVELS, Sparring
from lab.statistics import clopper_pearson
from lab.workbench import Workbench

REPORT = Path("docs/results-sparring.md")
FRESH = 20_000
"""Seeds from here on drew no slice for anything else: the twins never saw those of `fit`."""


@dataclass(frozen=True, slots=True)
class Slices:
    """Drawn slices by use, (N, 1, rows, columns), 0 to 1."""

    held: Tensor
    """For the fusions."""
    a: Tensor
    """For the tails."""
    b: Tensor
    """For the conformal rules."""
    test: Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """One fusion, alone and with the other detectors, each calibrated to the same rate."""

    name: str
    clean: Mapping[str, Any]
    """Clean test slices that it flags alone."""
    caught: Mapping[str, Any]
    """The share that it flags alone of what whoever does not know it got misread."""
    alone: Mapping[float, Mapping[str, Any]]
    """By budget: test slices that whoever knows it got misread and past it."""
    whole: Mapping[float, Mapping[str, Any]]
    """The same of all the detectors together."""


@click.command()
@click.option("--assets", type=click.Path(exists=True, path_type=Path), default=phantoms.ASSETS, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=REPORT, show_default=True)
@click.option("--held", default=96, show_default=True, help="slices that the fusions are fitted on")
@click.option("--calibrate", default=300, show_default=True, help="slices for the tails, and as many for the rules")
@click.option("--attacked", default=40, show_default=True, help="test slices that are attacked")
@click.option("--rounds", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--eps", "budgets", type=float, multiple=True, default=LEVELS, show_default=True, help="repeatable")
@click.option("--steps", default=40, show_default=True, help="of the attacker who is measured; two starts")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", default=0, show_default=True, help="threads that measure; 0: as torch chooses")
def main(
    *, assets: Path, out: Path, held: int, calibrate: int, attacked: int, rounds: int,
    budgets: tuple[float, ...], steps: int, seed: int, threads: int,
) -> None:  # fmt: skip
    """Fit the bundled fusion anew, once and in rounds, and attack each on slices that nothing was fitted on."""
    if threads:
        torch.set_num_threads(threads)
    opened = Bench.open(assets)
    span = opened.ensemble.probe.span

    def drawn(use: str, count: int) -> Tensor:
        return span.to_unit(phantoms.rendered(phantoms.seeds(use, count, skip=FRESH), opened.profile))

    slices = Slices(drawn("fit", held), drawn("a", calibrate), drawn("b", calibrate), drawn("test", attacked))
    with progress() as watch:
        bench = Workbench(opened.ensemble.probe.reference, opened.profile, torch.device("cpu"), seed, watch)
        rows = compare(
            bench, opened.ensemble, slices, rounds=rounds, budgets=budgets, steps=steps, fpr=FPR, watch=watch
        )  # fmt: skip
    said = {"held": held, "calibrate": calibrate, "attacked": attacked, "rounds": rounds, "steps": steps, "seed": seed}
    options = [*(f"--{name} {value}" for name, value in said.items()), *(f"--eps {each:g}" for each in budgets)]
    out.write_text(document(rows, " ".join(options), held, calibrate, rounds), encoding="utf-8")


def compare(
    bench: Workbench, ensemble: Ensemble, slices: Slices, *, rounds: int, budgets: Sequence[float], steps: int,
    fpr: float, watch: Watch,
) -> list[Row]:  # fmt: skip
    """Measure the usual fusion, the same with no negative weight, and what the rounds make of it.

    Args:
        bench: of the ensemble's model.
        ensemble: whose twins are weighed, and whose other deciding detectors stand beside the fusion.
        slices: that none of them was fitted on.
        rounds: against who knows the fusion.
        budgets: of the attacker who measures, 8-bit grey levels.
        steps: of the attacker who measures, in each of two starts; that of the rounds has one start.
        fpr: of the conformal rules.
        watch: told of progress.
    """
    material, theirs = (
        bench.held_out(ensemble.probe, bench.span.from_unit(each)) for each in (slices.held, slices.test)
    )
    _, *_, last = after = list(Sparring(bench, rounds, fpr).after_each(material))
    fusions = {"fitted once": Fusion.fit(material), "no negative weight": after[0], f"after {rounds} rounds": last}
    others = [each.detector for each in ensemble.members if each.channel and each.detector.name != Fusion.name]
    rows = []
    for place, (name, fusion) in enumerate(fusions.items()):
        watch("attacking in the knowledge of each fusion", place / len(fusions))
        own, whole = (_calibrated(bench, ensemble, each, slices, fpr) for each in ([fusion], [fusion, *others]))
        rows.append(
            Row(
                name,
                _flagged(own, slices.test, fpr),
                _flagged(own, theirs.attacked, fpr),
                {eps: evaded(bench, own, slices.test, fpr, eps, steps) for eps in budgets},
                {eps: evaded(bench, whole, slices.test, fpr, eps, steps) for eps in budgets},
            )
        )
    watch("attacking in the knowledge of each fusion", 1.0)
    return rows


def evaded(bench: Workbench, ensemble: Ensemble, unit: Tensor, fpr: float, eps: float, steps: int) -> dict[str, Any]:
    """Return the share of images, 0 to 1, that whoever knows the ensemble gets misread and past it."""
    stored = (unit / LEVEL).round().to(bench.device)
    with torch.no_grad():
        answer = decided(bench.model(stored * LEVEL), bench.task)
    attack = Adaptive(eps=eps, ensemble=ensemble, alpha=fpr, steps=steps, restarts=2, seed=bench.seed + 500)
    found = attack(bench.target, stored, answer)
    return clopper_pearson(int(found.success.sum()), len(unit))


def _calibrated(
    bench: Workbench, ensemble: Ensemble, detectors: Sequence[Detector], slices: Slices, fpr: float
) -> Ensemble:
    """Return the detectors joined: tails on A, rules on B, as `fit` does it."""
    probe, span = ensemble.probe, ensemble.probe.span
    a = bench.usual(probe, list(detectors), span.from_unit(slices.a))
    b = bench.scores(probe, list(detectors), span.from_unit(slices.b))
    members = joining.tails(detectors, a)
    return joining.calibrated(probe, members, joining.channels(members, a), b, fpr)


def _flagged(ensemble: Ensemble, unit: Tensor, fpr: float) -> dict[str, Any]:
    flags = flagged(ensemble, unit, fpr)[0]["ensemble"]
    return clopper_pearson(int(flags.sum()), len(flags))


def document(rows: Sequence[Row], options: str, held: int, calibrate: int, rounds: int) -> str:
    """Return the page; every figure comes from a row."""
    lines = [
        "# What rounds against an attacker who knows the fusion are worth",
        "",
        f"Written by `python -m lab.sparring_results {options}`;",
        f"do not edit. Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores, CPU.",
        "",
        f"The bundled twins on drawn slices; three fusions of {held} slices that no twin saw: fitted once as usual;",
        f"with no weight against what its number tells; and after {rounds} rounds against whoever knows it",
        f"([hardening](hardening.md#the-fusion-in-rounds)). Each has its tails from {calibrate} other slices and its",
        f"rule for {FPR:g} from {calibrate} more. `unaware`: of what was misread by attacks that do not know it, the",
        "share flagged. The rest: test slices that an attacker who knows the detectors gets misread **and** past them,",
        "in per cent; first past the fusion by itself, then past all that decides. Intervals are 95 %",
        "Clopper-Pearson. One seed.",
        "",
    ]
    past = [f"{what} {eps:g}" for what in ("alone", "all") for eps in rows[0].alone]
    heads = ["fusion", "clean flagged", "unaware", *past]
    lines += ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in rows:
        rates = [row.clean, row.caught, *row.alone.values(), *row.whole.values()]
        lines.append(f"| {row.name} | " + " | ".join(map(_rate, rates)) + " |")
    return "\n".join(lines) + "\n"


def _rate(found: Mapping[str, Any]) -> str:
    return f"{100 * found['rate']:.0f} [{100 * found['low']:.0f}, {100 * found['high']:.0f}]"


if __name__ == "__main__":
    main()
