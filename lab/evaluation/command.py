"""What `scanward-lab evaluate` does with its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gateway import durable
from gateway.profile import Profile
from lab import served
from lab.data import DataError
from lab.evaluation.attacks import ALL, Informed
from lab.evaluation.evaluate import evaluate
from lab.evaluation.files import write
from lab.evaluation.gate import judge, markdown
from lab.evaluation.grades import GRADES
from lab.evaluation.junit import junit
from lab.evaluation.report import Report
from lab.evaluation.threat import ThreatModel
from lab.progress import progress
from lab.whereabouts import Whereabouts


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be tried."""

    attacks: Sequence[str]
    levels: Sequence[float]
    adaptive: bool
    grade: str
    forms: Sequence[Informed] = ("single",)
    """Of the informed attacker; a threat model claims about the first alone."""

    @classmethod
    def of_words(
        cls, attacks: str, eps: str, grade: str, *, adaptive: bool, forms: Sequence[Informed] = ("single",)
    ) -> Wanted:
        """From the words of the command line; raises `DataError`."""
        try:
            levels = [float(each) for each in eps.split(",")]
        except ValueError as error:
            raise DataError(f"--eps: {eps!r} is no list of numbers") from error
        return cls(ALL if attacks == "all" else attacks.split(","), levels, adaptive, grade, forms)

    @classmethod
    def of_threat(cls, threat: ThreatModel) -> Wanted:
        """What a threat model claims about."""
        return cls(threat.attacks, threat.levels, threat.informed, threat.grade)


@dataclass(frozen=True, slots=True)
class Given:
    """The files and numbers of one call."""

    model: Whereabouts
    profile: Path
    detectors: Path
    manifest: bytes
    """Of those detectors, as it is to be believed."""
    data: Path
    shifts: Sequence[Path]
    out: Path | None
    junit: Path | None
    images: int | None
    steps: int | None
    seed: int
    device: str


def run(given: Given, wanted: Wanted, threat: ThreatModel | None) -> tuple[dict[str, Any], str]:
    """Attack, write what was asked for, and judge by the threat model, if there is one.

    Returns:
        report.json, with `gate` where it was judged, and the same as text.
    """
    if given.junit is not None and threat is None:
        raise DataError("--junit: there is nothing to pass or fail without --threat-model")
    title = given.data.stem

    def keep(found: Report) -> None:
        if given.out is not None:
            write(found, given.out, title)

    profile = Profile.load(given.profile)
    model = served.as_fitted(given.model, profile, given.detectors)
    with progress() as watch:
        report = evaluate(
            model.file, profile, given.detectors, given.manifest, given.data, ask=model.ask,
            attacks=wanted.attacks, levels=wanted.levels,
            grade=GRADES[wanted.grade].altered(given.images, given.steps), adaptive=wanted.adaptive, forms=wanted.forms,
            shifts=given.shifts, seed=given.seed, device=torch.device(given.device), watch=watch, keep=keep,
        )  # fmt: skip
    document, text = report.document(), report.markdown(title)
    gate = None if threat is None else judge(document, threat)
    if gate is not None:
        document |= {"gate": gate}
        text += "\n\n" + markdown(gate)
    if given.out is not None:
        write(report, given.out, title, gate)
    if given.junit is not None and gate is not None:
        facts = {name: str(document[name]) for name in ("model", "profile", "dataset", "grade")}
        durable.replace(given.junit, junit(gate, facts).encode(), mode=0o644)
    return document, text
