"""What a hardened network is worth: right answers on clean test scans and under attack, with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor

from detectors.models.outputs import Activation, Task, changed, decided, to_logits
from gateway.profile import Profile
from lab.attacks.attack import TASKS, Attack, Target
from lab.attacks.autoattack import AutoAttack
from lab.attacks.pgd import PGD
from lab.data import Split
from lab.development import grey
from lab.hardening.method import Model
from lab.progress import Watch
from lab.statistics import clopper_pearson
from lab.workbench import span_of

BATCH = 64
ATTACKS = ("pgd", "autoattack")


@dataclass(frozen=True, slots=True)
class Judging:
    """How a network is attacked; the defaults are those of the table."""

    attacked: int = 100
    """Test scans at most, drawn at random, misread ones too."""
    levels: tuple[int, ...] = (1, 2, 4, 8)
    """Budgets in grey levels."""
    attacks: tuple[str, ...] = ATTACKS
    steps: int = 50
    """Of PGD on the margin."""
    auto_steps: int = 100
    """Of each attack of AutoAttack."""
    queries: int = 5000
    """Of its last one."""

    def __post_init__(self) -> None:
        if not self.levels or not self.attacks or strange(self.attacks):
            raise ValueError(f"attacks are some of {', '.join(ATTACKS)}, at one level or more: {self}")
        if min(self.attacked, self.steps, self.auto_steps, self.queries, *self.levels) < 1:
            raise ValueError(f"every number must be at least 1: {self}")

    def made(self) -> Iterator[tuple[str, int, Attack]]:
        """Yield every attack with its name and budget."""
        for level in self.levels:
            if "pgd" in self.attacks:
                yield "pgd", level, PGD(eps=level, steps=self.steps, confidence=0.0, batch=BATCH)
            if "autoattack" in self.attacks:
                steps, queries = self.auto_steps, self.queries
                yield "autoattack", level, AutoAttack(eps=level, steps=steps, queries=queries, batch=BATCH)


def strange(attacks: tuple[str, ...]) -> list[str]:
    """Names that are no attack of the table."""
    return [name for name in attacks if name not in ATTACKS]


class Figures:
    """Rows that were measured, on disk as they come: a measurement that is cut short goes on."""

    def __init__(self, path: Path, of: str) -> None:
        self._path, self._of = path, of
        self._rows: dict[str, Any] = {}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            self._rows = found["rows"] if found["of"] == of else {}

    def row(self, name: str, measured: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a row that is known, or measure it and keep it."""
        if name not in self._rows:
            self._rows[name] = measured()
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps({"of": self._of, "rows": self._rows}), encoding="utf-8")
            part.replace(self._path)
        found: dict[str, Any] = self._rows[name]
        return found


def measure(
    network: Model, served: bytes, beside: Model | None, profile: Profile, test: Split, judging: Judging,
    figures: Figures, *, device: torch.device, watch: Watch,
) -> dict[str, Any]:  # fmt: skip
    """Measure a hardened network.

    Accuracy is that of the served file under onnxruntime on every test scan. The attacks go through the network with
    its gradient, on 8-bit grey levels of the image as the model takes it, rounded before they are judged: of each
    channel in colour, of all alike where every scan is grey. Several findings are right when all of them are.

    Args:
        network: (N, C, H, W) images, 0 to 1, to logits, on the device.
        served: the ONNX file.
        beside: another model of the same task, which the network may stand beside and vote.
        profile: of both.
        test: scans that nothing was trained on.
        judging: how to attack.
        figures: keeps the rows.
        device: where to attack.
        watch: told of the progress.

    Returns:
        `clean` and, in `robust`, a rate with its interval for each attack; in `beside` how often the network
        decides otherwise than the model, on clean scans and where an attack on the model succeeded.
    """
    of = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))[: judging.attacked]
    stored = _stored(span_of(profile).to_unit(test.images[of])).to(device)
    labels = test.labels[of].long().to(device)
    watch("measuring", 0.0)
    parts = len(judging.levels) * (len(judging.attacks) + (beside is not None)) + 1
    clean = figures.row("clean", partial(_clean, served, profile, test))
    robust, voted, done = [], {}, 1
    target = _target(network, profile)
    for name, level, attack in judging.made():
        watch("measuring", done / parts)
        rate = figures.row(f"{name} {level}", partial(_robust, attack, target, stored, labels))
        robust.append({"attack": name, "configuration": repr(attack), "eps": level, **rate})
        done += 1
    if beside is not None:
        model = _target(beside, profile)
        for level in judging.levels:
            watch("measuring", done / parts)
            made = PGD(eps=level, steps=judging.steps, batch=BATCH)
            vote = partial(_vote, made, model, target, Task(profile.task), stored, labels)
            voted[str(level)] = figures.row(f"beside {level}", vote)
            done += 1
    watch("measuring", 1.0)
    return {"clean": clean, "robust": robust, "beside": voted}


def _clean(served: bytes, profile: Profile, test: Split) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(served, providers=["CPUExecutionProvider"])
    task = Task(profile.task)
    right = 0
    for part, labels in zip(torch.split(test.images, BATCH), torch.split(test.labels.long(), BATCH), strict=True):
        output = torch.from_numpy(session.run(None, {profile.input.name: part.numpy()})[0])
        logits = to_logits(output, Activation(profile.already_applied), task)
        right += int((TASKS[task.value].margin(logits, labels) > 0).sum())
    return clopper_pearson(right, len(test))


def _robust(attack: Attack, target: Target, stored: Tensor, labels: Tensor) -> dict[str, Any]:
    found = attack(target, stored, labels)
    return clopper_pearson(int((~found.success).sum()), len(labels))


def _vote(
    attack: Attack, model: Target, hardened: Target, task: Task, stored: Tensor, labels: Tensor
) -> dict[str, Any]:
    """How often the hardened network contradicts the model, on clean scans and on successful attacks on the model."""
    found = attack(model, stored, labels)
    with torch.no_grad():
        misled = found.images[found.success & (model.task.margin(model.logits(stored), labels) > 0)]
        alarms, noticed = (
            int(changed(decided(model.logits(each), task), hardened.logits(each), task).sum()) if len(each) else 0
            for each in (stored, misled)
        )
    told = clopper_pearson(noticed, len(misled)) if len(misled) else None
    return {"clean": clopper_pearson(alarms, len(stored)), "attacked": told}


def _stored(unit: Tensor) -> Tensor:
    """(N, 1 or 3, H, W) 8-bit values of (N, C, H, W) images, 0 to 1: a grey file holds one channel for all."""
    held = unit[:, :1] if grey(unit) else unit
    return (255 * held).round().clamp(0, 255)


def _target(network: Model, profile: Profile) -> Target:
    """A network behind 8-bit values of one channel, or of all that it takes."""
    channels = profile.input.channels
    return Target(network, lambda x: (x / 255).expand(-1, channels, -1, -1), 1.0, 0.0, 255.0, TASKS[profile.task])
