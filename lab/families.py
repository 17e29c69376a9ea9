"""Fits the fusion without one family of attacks at a time, then attacks with just that family: `make families`."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import click
import torch

from detectors.artifact import CATEGORIES, MANIFEST, Artefact
from detectors.methods.fusion import Fusion
from lab.data import DataError
from lab.development import Family
from lab.evaluation.evaluate import evaluate
from lab.evaluation.files import write
from lab.evaluation.grades import GRADES, Grade
from lab.evaluation.words import interval, levels
from lab.fitting import HELD_OUT, Parts, promised, weighed
from lab.image_results import IMAGES, LEVELS, SETS, evaluated
from lab.joining import HOMES
from lab.progress import Watch, progress
from lab.refusals import refusals
from lab.victims import Victim, victim
from lab.workbench import Workbench

FAMILY_OF: Mapping[str, Family | None] = {
    "low-frequency": Family.SMOOTH,
    "transfer": Family.CARRIED,
    "square": None,
    "bias-field": None,
    "patch": None,
}
"""Attacks of an evaluation, each with the family of simulated ones that it belongs to; None: no fusion is shown any."""
EVERY, FITTED = "every family shown", "detectors"
REPORT = Path("docs/results-families.md")

Document = Mapping[str, Any]
"""A report.json."""


@click.command()
@click.option("--images", type=click.Path(exists=True, file_okay=False, path_type=Path), default=IMAGES)
@click.option("--set", "sets", multiple=True, type=click.Choice(SETS), default=SETS, show_default=True)
@click.option("--grade", "grade_name", type=click.Choice(sorted(GRADES)), default="quick", show_default=True)
@click.option("--images-each", type=click.IntRange(min=1), help="scans to attack, in place of the grade's number")
@click.option("--steps", type=click.IntRange(min=1), help="steps of the attacks, in place of the grade's number")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="that the detectors have")
@click.option("--work", type=click.Path(path_type=Path), default=Path(".cache/results"), show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=REPORT, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=len(os.sched_getaffinity(0)), show_default=True)
def main(
    *, images: Path, sets: Sequence[str], grade_name: str, images_each: int | None, steps: int | None, seed: int,
    work: Path, out: Path, threads: int,
) -> None:  # fmt: skip
    """Measure the fitted detectors of each set (WORK/SET/detectors) on families that their fusion was not shown.

    (1) take the model and its detectors, as `make results-images` leaves them
    (2) fit the fusion and all tails anew, without one family at a time; calibrate
    (3) attack with that family, on scans that nothing was fitted on
    (4) tell

    What was fitted or measured before from the same detectors is taken from the work folder.
    """
    torch.set_num_threads(threads)
    grade = GRADES[grade_name].altered(images_each, steps)
    chapters = []
    with refusals():
        for name in sets:
            npz, directory = images / f"{name}.npz", work / name
            reports = measured(_guarded(npz, directory), npz, directory / FITTED, directory / "families", grade, seed)
            chapters.append(chapter(name, reports))
    told = {"--images-each": images_each, "--steps": steps}
    asked = [f"--set {name}" for name in sets if tuple(sets) != SETS] + [f"--grade {grade_name}"]
    asked += [f"{option} {value}" for option, value in told.items() if value is not None]
    asked += [f"--seed {seed}"] * (seed > 0)
    command = " ".join(["python -m lab.families", *asked])
    out.write_text(_document(command, chapters), encoding="utf-8")  # (4)


def _guarded(npz: Path, directory: Path) -> Victim:
    """The model and its images; raises DataError where it has no detectors."""
    if not (directory / FITTED / MANIFEST).exists():
        raise DataError(f"{directory / FITTED}: no fitted detectors; `make results-images` leaves some")
    return victim(npz, directory)  # (1)


def measured(
    guarded: Victim, npz: Path, fitted: Path, place: Path, grade: Grade, seed: int
) -> dict[Family | None, Document]:
    """By the family that was left out, the report of its attacks; under None that of all, with every family shown.

    Args:
        guarded: the model and its images.
        npz: these images.
        fitted: directory of the detectors.
        place: where what is fitted and measured is kept.
        grade: how hard to try.
        seed: of the fit that left the detectors, and of the attacks.

    Raises:
        DataError: the detectors were fitted on other images.
    """
    origin = hashlib.sha256((fitted / MANIFEST).read_bytes()).hexdigest()[:16]
    reports: dict[Family | None, Document] = {}
    for family in (None, *dict.fromkeys(each for each in FAMILY_OF.values() if each)):
        out = place / origin / (f"without {family}" if family else EVERY).replace(" ", "-")
        with progress() as watch:
            if not (out / MANIFEST).exists():
                refit(guarded, fitted, out, frozenset[Family]() if family is None else {family}, seed, watch)  # (2)
            attacks = [name for name, its in FAMILY_OF.items() if family is None or its is family]
            reports[family] = _attacked(guarded, out, npz, attacks, grade, seed, watch)  # (3)
    return reports


def refit(guarded: Victim, fitted: Path, out: Path, without: Set[Family], seed: int, watch: Watch) -> bytes:
    """Write detectors whose fusion, choice of members and tails come from A without some families; B as ever.

    Model, twins and the gradient-aligned network are the fitted ones: none of them learns from smooth attacks or from
    those that carry over. Detectors that only report are left behind.

    Args:
        guarded: the model and its images.
        fitted: directory of the artefact.
        out: directory to write; the manifest is not signed.
        without: families that are left out.
        seed: of the fit that left the artefact: it says which scans are A.
        watch: told of progress.

    Returns:
        The manifest.

    Raises:
        DataError: the artefact was fitted on other images, or no simulated attack is left.
        detectors.errors.DetectorError: it cannot be loaded.
    """
    profile, model = guarded.profile, guarded.model_file.read_bytes()
    before = Artefact.load(fitted, (fitted / MANIFEST).read_bytes(), model, profile.sha256, torch.device("cpu"))
    parts = Parts.of(guarded.images, seed).in_rounds(int(before.manifest.get("fusion_rounds", 0)), seed)
    if before.manifest["data_sha256"] != parts.sha256:
        raise DataError(f"{fitted}: was fitted on other images")
    probe, fpr = before.ensemble.probe, float(before.manifest["fpr"])
    mine = [each.detector for each in before.ensemble.members if each.detector.name in HOMES]
    bench = Workbench(probe.reference, profile, torch.device("cpu"), seed, watch)
    learned, names = [each for each in mine if each.name not in HELD_OUT], [each.name for each in mine]
    members, channels, _ = weighed(bench, probe, learned, names, parts, fpr, without=without)
    ensemble = promised(bench, probe, members, channels, parts.b, fpr)
    facts = {key: value for key, value in before.manifest.items() if key != CATEGORIES}
    return Artefact.write(out, ensemble, {}, facts | {"measured": {}, "without": sorted(without)})


def _attacked(
    guarded: Victim, fitted: Path, npz: Path, attacks: Sequence[str], grade: Grade, seed: int, watch: Watch
) -> Document:
    """The report on some attacks; measured anew unless that was done with these detectors, attacks and grade."""
    manifest = (fitted / MANIFEST).read_bytes()
    place = fitted / evaluated(manifest, attacks, grade)
    if not (place / "report.json").exists():
        report = evaluate(
            guarded.model_file.read_bytes(), guarded.profile, fitted, manifest, npz,
            attacks=attacks, levels=LEVELS, grade=grade, seed=seed, watch=watch,
        )  # fmt: skip
        write(report, place, npz.stem)
    found: Document = json.loads((place / "report.json").read_text(encoding="utf-8"))
    return found


def chapter(name: str, reports: Mapping[Family | None, Document]) -> str:
    """One set's tables.

    Args:
        name: of the set.
        reports: as `measured` gives them.
    """
    shown = reports[None]
    head = ["attack, grey levels", "left out", "succeed", "flagged", "had it been shown"]
    head += ["fusion alone", "fusion, had it been shown", "misread and admitted"]
    rows = [row for attack, family in FAMILY_OF.items() for row in _rows(attack, reports[family], shown, family)]
    calm = [
        [
            f"without {family}" if family else EVERY,
            ", ".join(member for member, weight in report["detectors"].items() if weight),
            interval(report["fpr_measured"]),
        ]
        for family, report in reports.items()
    ]
    lines = [
        f"## {name}",
        "",
        f"Grade `{shown['grade']}`, seed {shown['seeds'][0]}. {shown['n_clean']} clean test scans; flagged means "
        f"p <= {shown['target_fpr']:g}.",
        "",
        *_table(head, rows),
        "",
        *_table(["fusion and tails", "decide", "clean scans flagged"], calm),
        "",
    ]
    return "\n".join(lines)


def _rows(attack: str, unseen: Document, shown: Document, family: Family | None) -> Iterator[list[str]]:
    """The rows of one attack: each budget, then all of them, which has no interval: they attack the same scans."""
    pairs = [
        (each, other if family else None)
        for each, other in zip(_entries(unseen, attack), _entries(shown, attack), strict=True)
    ]
    left_out = family or "never shown"
    for each, other in pairs:
        name = attack if each["eps"] is None else f"{attack}, {levels(each['eps'])}"
        found = [_flagged(one, who) for who in ("ensemble", Fusion.name) for one in (each, other)]
        succeed = f"{each['n_success']}/{each['n_attacked']}"
        yield [name, left_out, succeed, *(interval(one) for one in found), interval(each["adversarial_risk"])]
    if len(pairs) > 1:
        sums = [_share(_counted([pair[k] for pair in pairs], who)) for who in ("ensemble", Fusion.name) for k in (0, 1)]
        tried, done = (sum(each[key] for each, _ in pairs) for key in ("n_attacked", "n_success"))
        evaded = sum(len(each["evaded"]) for each, _ in pairs)
        yield [f"{attack}, all", left_out, f"{done}/{tried}", *sums, _share((evaded, tried))]


def _entries(report: Document, attack: str) -> list[Document]:
    return [each for each in report["attacks"] if each["name"] == attack]


def _flagged(entry: Document | None, who: str) -> Mapping[str, float] | None:
    """The rate among the successes; None where there are none."""
    worth = entry and (entry["ensemble"] if who == "ensemble" else entry["detectors"][who])
    return worth["at_target"] if worth else None


def _counted(entries: Sequence[Document | None], who: str) -> tuple[int, int]:
    """How many successes were flagged, of how many."""
    rates = [rate for rate in (_flagged(each, who) for each in entries) if rate]
    return sum(round(rate["rate"] * rate["n"]) for rate in rates), sum(int(rate["n"]) for rate in rates)


def _share(counts: tuple[int, int]) -> str:
    hits, trials = counts
    return f"{hits}/{trials}, {hits / trials:.1%}" if trials else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def _document(command: str, chapters: Sequence[str]) -> str:
    """The whole document."""
    lines = [
        "# Attacks of a kind that the fusion was never shown",
        "",
        f"Written by `{command}` (`make families`); do not edit. Python {platform.python_version()}, torch",
        f"{torch.__version__}, {os.cpu_count()} cores, CPU. How figures are counted: [evaluation.md](evaluation.md).",
        "",
        "The fusion learns from simulated attacks of three families: those that follow the model (`gradient`), the",
        "same without fine detail (`smooth`), and those that follow the twins (`carried over`). For low-frequency and",
        "transfer attacks it was fitted anew without the family that they belong to, and with it the choice of",
        "members and every tail, on the same scans; the threshold comes from clean calibration scans, as ever. Twins",
        "and the gradient-aligned networks learn from neither family. Random squares, bias fields and patches are",
        "never shown to anything: there it was fitted on all three families.",
        "",
        "*Succeed*: misread after the attack, of all attacked, which the model reads rightly. *Flagged*: of these",
        "successes, by the whole ensemble, with the 95 % interval in per cent; few successes make it wide, and where",
        "there are none a dash stands. *Had it been shown*: the same attacks, by detectors whose fusion saw every",
        "family. *All*: the budgets taken together; they attack the same scans, so there is no interval.",
        "",
        *chapters,
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
