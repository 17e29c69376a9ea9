"""Trains, guards and attacks a model on each set of real images, and writes docs/results.md: `make results-images`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch

from detectors import registry
from detectors.artifact import MANIFEST
from detectors.calibration import Guarantee, fewest
from lab.evaluation.attacks import ALL
from lab.evaluation.evaluate import evaluate
from lab.evaluation.files import write
from lab.evaluation.grades import GRADES, Grade
from lab.fitting import Parts, fit
from lab.hardening.harden import harden
from lab.hardening.measure import Judging
from lab.hardening.registry import METHODS, named
from lab.progress import progress
from lab.statistics import clopper_pearson
from lab.victims import MODEL, Victim, described, victim

IMAGES = Path("../shared/data/images")
SETS = ("chest_xray", "brain_mri", "breast_us")
SHIFTS = {"chest_xray": ("chest_xray_adult",)}
"""Sets of another source of the same kind, shown as they are."""
RATES = (0.01, 0.02, 0.05)
"""False-positive rates: the first that a set has clean scans enough for."""


LEVELS = (1, 2, 4, 8)
FURTHER = ("pgd", "autoattack")
"""Attacks on the models of other seeds and on hardened ones, beside that of the informed attacker."""

Document = Mapping[str, Any]
"""A report.json."""


@dataclass(frozen=True, slots=True)
class Training:
    """One model of one set, and what stands before it."""

    folder: str
    """Under the work folder."""
    title: str
    seed: int
    attacks: Sequence[str]
    detectors: Sequence[str]
    method: str | None = None
    """Of hardening; None: trained without any defence."""


def _checked(_context: click.Context, option: click.Parameter, words: Sequence[str]) -> Sequence[str]:
    """What was said of one set or of all, each understood; raises `click.BadParameter`."""
    for word in words:
        name, _, value = word.rpartition("=")
        known = value in METHODS if option.name == "hardened" else value.isdecimal() and int(value) > 0
        if name not in ("", *SETS) or not known:
            raise click.BadParameter(f"{word!r} is no {option.metavar}; sets are {', '.join(SETS)}")
    return words


def _said_of(name: str, words: Sequence[str]) -> list[str]:
    """What was said of this set."""
    return [value for of, _, value in (word.rpartition("=") for word in words) if of in ("", name)]


@click.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), default=IMAGES)
@click.option("--set", "sets", multiple=True, type=click.Choice(SETS), default=SETS, show_default=True)
@click.option("--grade", "grade_name", type=click.Choice(sorted(GRADES)), default="quick", show_default=True)
@click.option("--images-each", type=click.IntRange(min=1), help="scans to attack, in place of the grade's number")
@click.option("--steps", type=click.IntRange(min=1), help="steps of the attacks, in place of the grade's number")
@click.option("--attacks", default=",".join(ALL), show_default=True)
@click.option(
    "--seeds",
    multiple=True,
    callback=_checked,
    metavar="[SET=]N",
    help="trainings without defence, 1 unless told; repeatable",
)
@click.option(
    "--hardened", multiple=True, callback=_checked, metavar="[SET=]METHOD", help="hardened models as well; repeatable"
)
@click.option("--work", type=click.Path(path_type=Path), default=Path(".cache/results"), show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("docs/results.md"))
@click.option("--threads", type=click.IntRange(min=1), default=len(os.sched_getaffinity(0)), show_default=True)
def main(
    *,
    images: Path,
    sets: Sequence[str],
    grade_name: str,
    images_each: int | None,
    steps: int | None,
    attacks: str,
    seeds: Sequence[str],
    hardened: Sequence[str],
    work: Path,
    out: Path,
    threads: int,
) -> None:
    """Measure every detector on real images; what was trained, fitted or measured before is taken from the work folder.

    (1) train a model without any defence; with --seeds more of them, with --hardened hardened ones
    (2) fit every detector that there is, and calibrate; before the further models, those that decide
    (3) attack, on scans that nothing was fitted on
    (4) tell
    """
    torch.set_num_threads(threads)
    grade = GRADES[grade_name].altered(images_each, steps)
    chapters = []
    for name in sets:
        npz = images / f"{name}.npz"
        found: dict[str, Document] = {}
        trainings = max(map(int, _said_of(name, seeds)), default=1)
        for each in _trainings(attacks.split(","), trainings, _said_of(name, hardened)):
            directory = work / name / each.folder
            guarded = _trained(each, npz, directory)  # (1)
            _fitted(each, guarded, directory, _rate(len(guarded.images.val)))  # (2)
            shifts = [images / f"{other}.npz" for other in SHIFTS.get(name, ())]
            place = _measured(each, guarded, directory, npz, grade, shifts)  # (3)
            found[each.title] = json.loads((place / "report.json").read_text(encoding="utf-8"))
            if len(found) == 1:
                chapters.append((place / "report.md").read_text(encoding="utf-8"))
        if len(found) > 1:
            chapters.append(compared(found))
    told = {"--grade": grade_name, "--images-each": images_each, "--steps": steps, "--attacks": attacks}
    usual = {"--grade": "quick", "--attacks": ",".join(ALL)}
    asked = [f"--set {name}" for name in sets if tuple(sets) != SETS]
    asked += [f"{option} {value}" for option, value in told.items() if value not in (None, usual.get(option))]
    asked += [f"--seeds {each}" for each in seeds] + [f"--hardened {each}" for each in hardened]
    command = " ".join(["python -m lab.image_results", *asked])
    out.write_text(_document(command, chapters), encoding="utf-8")  # (4)


def _trainings(attacks: Sequence[str], seeds: int, hardened: Sequence[str]) -> list[Training]:
    """The first has every detector and every attack, and the page its tables; the others are compared with it."""
    first = Training(".", "without defence, seed 0", 0, attacks, registry.asked_for("all"))
    further = replace(first, attacks=FURTHER, detectors=registry.DEFAULT)
    return [
        first,
        *(replace(further, folder=f"seed{n}", title=f"without defence, seed {n}", seed=n) for n in range(1, seeds)),
        *(replace(further, folder=f"hardening/{name}", title=f"`{name}`", method=name) for name in hardened),
    ]


def _trained(training: Training, npz: Path, directory: Path) -> Victim:
    """The model, trained unless it lies there."""
    if training.method and not (directory / MODEL).exists():
        method = named(training.method)
        with progress() as watch:
            harden(
                method, npz, described(npz, directory), directory,
                recipe=method.recipe, judging=Judging(attacks=("pgd",), steps=20), seed=training.seed, watch=watch,
            )  # fmt: skip
    return victim(npz, directory, seed=training.seed)


def _rate(clean: int) -> float:
    """The smallest false-positive rate that so many clean scans support."""
    return next(rate for rate in RATES if clean >= fewest(rate, Guarantee.MARGINAL))


def _fitted(training: Training, guarded: Victim, directory: Path, fpr: float) -> None:
    """Fit the detectors, unless that was done."""
    if (directory / "detectors" / MANIFEST).exists():
        return
    with progress() as watch:
        fit(
            guarded.model_file.read_bytes(), guarded.profile, Parts.of(guarded.images, seed=training.seed),
            directory / "detectors", fpr=fpr, key=None, seed=training.seed, methods=training.detectors, watch=watch,
        )  # fmt: skip


def _measured(
    training: Training, guarded: Victim, directory: Path, npz: Path, grade: Grade, shifts: Sequence[Path]
) -> Path:
    """The folder of the report; measured anew unless that was done with these detectors, attacks and grade."""
    manifest = (directory / "detectors" / MANIFEST).read_bytes()
    place = directory / evaluated(manifest, training.attacks, grade)
    found = place / "report.json"
    if not (found.exists() and not json.loads(found.read_text(encoding="utf-8"))["attacks_left"]):
        with progress() as watch:
            report = evaluate(
                guarded.model_file.read_bytes(), guarded.profile, directory / "detectors", manifest, npz,
                attacks=training.attacks, levels=LEVELS, grade=grade, adaptive=True, shifts=shifts, seed=training.seed,
                watch=watch, keep=lambda report: write(report, place, npz.stem),
            )  # fmt: skip
        write(report, place, npz.stem)
    return place


def evaluated(manifest: bytes, attacks: Sequence[str], grade: Grade) -> str:
    """Return the name of an evaluation's folder: other detectors, attacks or grades have another."""
    asked = hashlib.sha256(b"\0".join([manifest, *(name.encode() for name in attacks)])).hexdigest()
    return f"evaluation-{grade.name.replace(', ', '-').replace(' ', '-')}-{asked[:16]}"


def compared(reports: Mapping[str, Document]) -> str:
    """The models of one set side by side, and the trainings without defence taken together.

    Args:
        reports: by title, in the order of the rows.
    """
    plain = [report for title, report in reports.items() if title.startswith("without defence")]
    columns = ["model", "read rightly", "flagged though clean"]
    columns += [f"{what} {level}" for what in ("PGD", "of these flagged", "admitted and misread") for level in LEVELS]
    lines = [
        "### Other trainings of the model",
        "",
        "Per cent. PGD: how many attacked scans the model alone misreads, of those it reads rightly, and how many of",
        "these the ensemble flags. Admitted and misread: the informed attacker against the whole ensemble, who holds",
        "the model, the twins, the detectors and the threshold. `vit` and `densenet` are no defences but other",
        "architectures; the rest is in [hardening.md](hardening.md)."
        + " The last row takes the trainings without defence together; its 95 % intervals count scans, not trainings."
        * (len(plain) > 1),
        "",
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
        *("| " + " | ".join([title, *_cells([report])]) + " |" for title, report in reports.items()),
    ]
    if len(plain) > 1:
        lines.append("| " + " | ".join([f"{len(plain)} seeds", *_cells(plain)]) + " |")
    return "\n".join([*lines, ""])


def _cells(reports: Sequence[Document]) -> list[str]:
    """The figures of models taken together, with an interval where there are several."""
    clean = sum(report["n_clean"] for report in reports)
    rightly = sum(round(report["clean_accuracy"] * report["n_clean"]) for report in reports)
    flagged = sum(round(report["fpr_measured"]["rate"] * report["n_clean"]) for report in reports)
    cells = [(rightly, clean), (flagged, clean)]
    pgd, adaptive = ([_counted(reports, name, level) for level in LEVELS] for name in ("pgd", "adaptive"))
    cells += [(misread, n) for n, misread, _ in pgd]
    cells += [(misread - evaded, misread) for _, misread, evaded in pgd]
    cells += [(evaded, n) for n, _, evaded in adaptive]
    return [_cell(hits, n, interval=len(reports) > 1) for hits, n in cells]


def _counted(reports: Sequence[Document], name: str, level: float) -> tuple[int, int, int]:
    """Of one attack at one budget: scans attacked, misread, and misread and admitted."""
    entries = [each for report in reports for each in report["attacks"] if (each["name"], each["eps"]) == (name, level)]
    return (
        sum(each["n_attacked"] for each in entries),
        sum(each["n_success"] for each in entries),
        sum(len(each["evaded"]) for each in entries),
    )


def _cell(hits: int, n: int, *, interval: bool) -> str:
    if not n:
        return "-"
    rate = clopper_pearson(hits, n)
    span = f" [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]" if interval else ""
    return f"{100 * rate['rate']:.1f}{span}"


def _document(command: str, chapters: list[str]) -> str:
    """The whole document."""
    lines = [
        "# What the detectors see on real images",
        "",
        f"Written by `{command}`; do not edit. Python {platform.python_version()}, torch {torch.__version__}, "
        f"{os.cpu_count()} cores, CPU. How figures are counted: [evaluation.md](evaluation.md).",
        "",
        "Small residual networks trained without any defence, with one seed unless it says otherwise. The tables have",
        "every method that was fitted; only those with a weight decide.",
        "",
        *chapters,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
