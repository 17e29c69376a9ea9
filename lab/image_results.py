"""Trains, guards and attacks a model on each set of real images, and writes docs/results.md: `make results-images`."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

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
from lab.progress import progress
from lab.victims import Victim, victim

IMAGES = Path("../shared/data/images")
SETS = ("chest_xray", "brain_mri", "breast_us")
SHIFTS = {"chest_xray": ("chest_xray_adult",)}
"""Sets of another source of the same kind, shown as they are."""
RATES = (0.01, 0.02, 0.05)
"""False-positive rates: the first that a set has clean scans enough for."""


@click.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), default=IMAGES)
@click.option("--set", "sets", multiple=True, type=click.Choice(SETS), default=SETS, show_default=True)
@click.option("--grade", "grade_name", type=click.Choice(sorted(GRADES)), default="quick", show_default=True)
@click.option("--images-each", type=click.IntRange(min=1), help="scans to attack, in place of the grade's number")
@click.option("--steps", type=click.IntRange(min=1), help="steps of the attacks, in place of the grade's number")
@click.option("--attacks", default=",".join(ALL), show_default=True)
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
    work: Path,
    out: Path,
    threads: int,
) -> None:
    """Measure every detector on real images; what was trained, fitted or measured before is taken from the work folder.

    (1) train a model without any defence
    (2) fit every detector that there is, and calibrate
    (3) attack, on scans that nothing was fitted on
    (4) tell
    """
    torch.set_num_threads(threads)
    grade = GRADES[grade_name].altered(images_each, steps)
    chapters = []
    for name in sets:
        directory = work / name
        guarded = victim(images / f"{name}.npz", directory)  # (1)
        fpr = _rate(len(guarded.images.val))
        _fitted(guarded, directory, fpr)  # (2)
        others = [images / f"{other}.npz" for other in SHIFTS.get(name, ())]
        chapters.append(
            _measured(guarded, directory, images / f"{name}.npz", grade, attacks.split(","), others)  # (3)
        )
    told = {"--grade": grade_name, "--images-each": images_each, "--steps": steps, "--attacks": attacks}
    asked = [f"--set {name}" for name in sets if tuple(sets) != SETS]
    asked += [f"{option} {value}" for option, value in told.items() if value is not None]
    command = " ".join(["python -m lab.image_results", *asked])
    out.write_text(_document(command, chapters), encoding="utf-8")  # (4)


def _rate(clean: int) -> float:
    """The smallest false-positive rate that so many clean scans support."""
    return next(rate for rate in RATES if clean >= fewest(rate, Guarantee.MARGINAL))


def _fitted(guarded: Victim, directory: Path, fpr: float) -> None:
    """Fit all detectors, unless that was done."""
    if (directory / "detectors" / MANIFEST).exists():
        return
    with progress() as watch:
        fit(
            guarded.model_file.read_bytes(), guarded.profile, Parts.of(guarded.images, seed=0),
            directory / "detectors", fpr=fpr, key=None, seed=0, methods=registry.asked_for("all"), watch=watch,
        )  # fmt: skip


def _measured(
    guarded: Victim, directory: Path, npz: Path, grade: Grade, attacks: Sequence[str], shifts: Sequence[Path]
) -> str:
    """One set's tables; measured anew unless that was done at this grade."""
    place = directory / f"evaluation-{grade.name.replace(', ', '-').replace(' ', '-')}"
    found = place / "report.json"
    if not (found.exists() and not json.loads(found.read_text(encoding="utf-8"))["attacks_left"]):
        with progress() as watch:
            report = evaluate(
                guarded.model_file.read_bytes(), guarded.profile, directory / "detectors",
                (directory / "detectors" / MANIFEST).read_bytes(), npz, attacks=attacks, levels=(1, 2, 4, 8),
                grade=grade, adaptive=True, shifts=shifts, watch=watch,
                keep=lambda report: write(report, place, npz.stem),
            )  # fmt: skip
        write(report, place, npz.stem)
    return (place / "report.md").read_text(encoding="utf-8")


def _document(command: str, chapters: list[str]) -> str:
    """The whole document."""
    lines = [
        "# What the detectors see on real images",
        "",
        f"Written by `{command}`; do not edit. Python {platform.python_version()}, torch {torch.__version__}, "
        f"{os.cpu_count()} cores, CPU. How figures are counted: [evaluation.md](evaluation.md).",
        "",
        "One model, one training seed for each set: small residual networks trained without any defence. The tables",
        "have every method that was fitted; only those with a weight decide.",
        "",
        *chapters,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
