"""`scanward-lab attack --through`: black-box attacks on a gateway that runs, and what its own defences saw of them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gateway.client.client import Client
from gateway.pixels.decompressor import DisposableDecoder
from gateway.pixels.unexaminable import UnexaminableError
from gateway.profile import Profile
from lab.attacks.attack import Attack, Target
from lab.attacks.command import REPORT, apart, configured, labelled
from lab.attacks.dicom import Opened, opened
from lab.attacks.guarded import Admitted
from lab.attacks.hopskipjump import HopSkipJump
from lab.attacks.registry import ATTACKS
from lab.attacks.simulated import NES, ZOO, GradientSimulation
from lab.attacks.square import Square
from lab.counters import grown, scraped
from lab.data import DataError, file_in
from lab.live.service import Service, SpentError
from signing import DicomError

DEFAULT = ("hopskipjump", "square", "nes")
"""By decisions alone, by scores and by simulated gradients."""
DEFENCES = (
    "scanward_scans_total",
    "scanward_findings_total",
    "scanward_signatures_total",
    "scanward_quarantine_held",
    "scanward_query_alarms_total",
    "scanward_unsafe_admissions_total",
    "scanward_audit_records_total",
)
"""What a gateway counts of an attack."""
_SIZED: Mapping[str, Callable[[float, int, Tensor | None], Attack]] = {
    # Twenty steps, whose probes grow with the root of the step, ask 62 times the first one's; the rest finds the way.
    "hopskipjump": lambda eps, asked, others: HopSkipJump(
        eps=eps, norm="linf", probes=max(2, asked // 90), others=others
    ),
    "square": lambda eps, asked, _others: Square(eps=eps, queries=asked),
    "nes": lambda eps, asked, _others: NES(eps=eps, probes=10, steps=max(1, asked // 21)),
    "zoo": lambda eps, asked, _others: ZOO(eps=eps, cells=10, steps=max(1, asked // 21)),
    "gradient-simulation": lambda eps, asked, _others: GradientSimulation(
        eps=eps, probes=10, steps=max(1, asked // 21)
    ),
}


@dataclass(frozen=True, slots=True)
class Door:
    """A gateway, and how long an attacker stays at it."""

    client: Client
    address: str
    route: str
    metrics: str | None
    """HOST:PORT of its metrics; None: nobody lets the attacker look."""
    questions: int
    """At most, for each scan and attack."""
    patience_s: float
    """How long one question may wait where the gateway asks to."""


@dataclass(frozen=True, slots=True)
class Specimen:
    """A labelled scan, opened."""

    name: str
    scan: Opened
    label: int

    @property
    def image(self) -> Tensor:
        """(1, 1, rows, columns) stored values of the frame that is attacked."""
        middle = len(self.scan.frames) // 2
        return self.scan.frames[middle : middle + 1]


def attack_through(
    door: Door, names: Sequence[str], eps: float, options: Sequence[str], profile: Profile, source: Path, out: Path
) -> dict[str, Any]:
    """Attack a folder of DICOM files with labels.csv through a live gateway.

    (1) open the scans, and refuse before any question what cannot be attacked
    (2) note what the gateway has counted
    (3) each attack on each scan; what it sent nearest to success is kept as a file
    (4) say what the attacker achieved and what the gateway saw

    Args:
        door: where.
        names: of attacks that need no gradient.
        eps: budget, 8-bit grey levels of the window.
        options: fields of a single attack, name=value, in place of those that follow from the questions.
        profile: of the protected model.
        source: the folder.
        out: gets a folder for each attack, and attack.json.

    Raises:
        DataError: scans, attacks or gateway cannot be used.
    """
    apart(source, out)
    _fit(names, options, profile)
    specimens = _opened(source, profile)  # (1)
    before = _counted(door)  # (2)
    rows = [_attacked(door, name, eps, options, profile, specimens, each, out) for name in names for each in specimens]
    after = _counted(door)  # (4)
    document = {
        "schema": 1,
        "through": door.address,
        "route": door.route,
        "eps": eps,
        "questions_max": door.questions,
        "attacks": [_summed(name, [row for row in rows if row["attack"] == name]) for name in names],
        "scans": rows,
        "defences": None if before is None or after is None else dict(grown(before, after, DEFENCES)),
        "ok": not any(row["through"] for row in rows),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / REPORT).write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return document


def _fit(names: Sequence[str], options: Sequence[str], profile: Profile) -> None:
    if profile.task != "multiclass":
        raise DataError("attacks through a gateway are on models that answer with one class of several")
    for name in names:
        knowledge = getattr(ATTACKS.get(name), "knowledge", None)
        if knowledge not in ("scores", "decisions", "none"):
            able = ", ".join(key for key, made in ATTACKS.items() if made.knowledge in ("scores", "decisions", "none"))  # type: ignore[attr-defined]
            raise DataError(f"{name}: no attack by answers alone; there are {able}")
    if options and len(names) != 1:
        raise DataError("--option needs one --attack")


def _opened(source: Path, profile: Profile) -> list[Specimen]:
    found = []
    with DisposableDecoder() as decompressor:
        for name, label in labelled(source, profile):
            try:
                found.append(Specimen(name, opened(file_in(source, name), profile, decompressor), label))
            except (DicomError, UnexaminableError, ValueError) as error:
                raise DataError(f"{name}: {error}") from error
    return found


def _counted(door: Door) -> Mapping[str, float] | None:
    if door.metrics is None:
        return None
    try:
        return scraped(door.metrics)
    except (OSError, ValueError) as error:
        raise DataError(f"--metrics {door.metrics}: no metrics there") from error


def _attacked(
    door: Door, name: str, eps: float, options: Sequence[str], profile: Profile, all_: Sequence[Specimen],
    specimen: Specimen, out: Path,
) -> dict[str, Any]:  # fmt: skip
    """One attack on one scan: the row of the report."""
    service = Service(
        door.client, door.route, specimen.scan, specimen.label, profile, door.questions, door.patience_s
    )  # fmt: skip
    label = torch.tensor([specimen.label])
    try:
        base = Target.of_dicom(service, specimen.scan.rendering, profile)
        target = replace(base, view=lambda stored: stored, task=Admitted(base.task))
        budget = target.budget(eps)
        attack = _made(name, eps, options, door.questions, specimen, all_)
    except ValueError as error:
        raise DataError(f"{specimen.name}: {error}") from error
    calm, stopped = False, None
    try:
        clean = target.logits(specimen.image)
        calm = bool(clean[0, -1] < 0) and bool(target.task.margin(clean, label) > 0)
        if calm:
            attack(target, specimen.image, label)
    except SpentError as error:
        stopped = str(error)
    closest = service.closest
    through = calm and closest is not None and closest.linf <= budget
    place = out / name / specimen.name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(closest.content if closest is not None else service.last)
    told = service.told
    return {
        "attack": name,
        "configuration": repr(attack),
        "scan": specimen.name,
        "attacked": calm,
        "through": through,
        "closest_levels": None if closest is None else closest.linf / target.level,
        "questions": told.questions,
        "throttled": told.throttled,
        "stopped": stopped,
        "dispositions": dict(told.dispositions),
        "reasons": dict(told.reasons),
    }


def _made(
    name: str, eps: float, options: Sequence[str], questions: int, specimen: Specimen, all_: Sequence[Specimen]
) -> Attack:
    """The attack, as large as the questions allow; for it, other scans of the folder that are read otherwise."""
    if options:
        return configured(name, eps, options)
    if name not in _SIZED:
        return configured(name, None, ())
    own = [each.image for each in all_ if each.label != specimen.label and each.image.shape == specimen.image.shape]
    return _SIZED[name](eps, questions, torch.cat(own) if own else None)


def _summed(name: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One attack on all scans."""
    dispositions: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for row in rows:
        dispositions.update(row["dispositions"])
        reasons.update(row["reasons"])
    return {
        "name": name,
        "knowledge": ATTACKS[name].knowledge,  # type: ignore[attr-defined]
        "scans": len(rows),
        "attacked": sum(row["attacked"] for row in rows),
        "through": sum(row["through"] for row in rows),
        "questions": sum(row["questions"] for row in rows),
        "throttled": sum(row["throttled"] for row in rows),
        "stopped": dict(Counter(row["stopped"] for row in rows if row["stopped"])),
        "dispositions": dict(dispositions),
        "reasons": dict(reasons),
    }
