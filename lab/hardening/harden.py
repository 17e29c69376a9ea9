"""Trains a hardened network on a data set, writes it as ONNX, and measures what it is worth: one run, one folder."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import statistics
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

from detectors.models.kinds import rebuilt
from detectors.models.outputs import Activation, Task, to_logits
from detectors.models.reference import Reference, conversion_difference
from detectors.observation import Span
from gateway import durable
from gateway.profile import Profile
from lab.data import DataError, Dataset, Split, load
from lab.hardening.card import page
from lab.hardening.measure import Figures, Judging, measure
from lab.hardening.method import Course, Method, Model
from lab.hardening.words import spoken
from lab.learning import Recipe
from lab.progress import Watch
from lab.training import export
from lab.victims import MODEL
from lab.workbench import span_of

CARD, PAGE, PROFILE = "card.json", "card.md", "profile.toml"
TRAINING, FIGURES = "training", "figures.json"


def harden(
    method: Method,
    source: Path,
    profile_path: Path,
    out: Path,
    *,
    recipe: Recipe,
    judging: Judging,
    seed: int = 0,
    device: str = "cpu",
    model: bytes | None = None,
    watch: Watch = lambda _stage, _share: None,
) -> dict[str, Any]:
    """Train, export, measure and tell; an interrupted run goes on where it was, a finished one is not run again.

    Args:
        method: configured.
        source: .npz, or a folder of DICOM files with labels.csv.
        profile_path: what the model is to take and to answer.
        out: directory for model.onnx, profile.toml, card.json and card.md.
        recipe: how to train.
        judging: how to attack what was trained.
        seed: of the training.
        device: cpu or cuda.
        model: file of a model to learn from, where the method learns from one, and to stand beside.
        watch: told of the progress.

    Returns:
        The card.

    Raises:
        DataError: the data cannot teach this model; told before anything is trained.
        DivergedError: the loss is no number any more.
        ConversionError: the given model cannot be rebuilt.
    """
    profile = Profile.load(profile_path)
    data = load(source, profile)
    check(data, profile, recipe, labelled=method.labelled or model is None)  # (1) all that can be told at once
    course, beside = _course(data, profile, recipe, seed, device, out / TRAINING, watch, model)
    _tried(method, course)
    run = _run(method, data, profile, course, judging)
    if (known := _known(out / CARD)).get("run") == run:
        return known
    (out / TRAINING).mkdir(parents=True, exist_ok=True)
    clock = _Clock(watch, f"training {method.name}")
    with _named_errors():
        network = method(replace(course, watch=clock)).to(device)  # (2) train
    served, difference = _exported(method, network, profile, data.test.images[:8])  # (3) export
    digest = hashlib.sha256(served).hexdigest()
    with _named_errors():
        found = measure(  # (4) measure
            network, served, beside, profile, data.test, judging, Figures(out / FIGURES, run + digest),
            device=torch.device(device), watch=watch,
        )  # fmt: skip
    card = {
        "schema": 1, "run": run, **_who(method, profile, data, course),
        "data": {"file": source.name, "sha256": data.sha256, "train": _told(data.train), "test": _told(data.test)},
        "cpu_seconds_per_epoch": clock.seconds(), "model_sha256": digest,
        "conversion_max_abs_diff": difference, "measured": found,
    }  # fmt: skip
    _left(out, profile_path.read_bytes(), served, card)  # (5) tell
    shutil.rmtree(out / TRAINING)
    (out / FIGURES).unlink()
    return card


def _left(out: Path, profile: bytes, model: bytes, card: dict[str, Any]) -> None:
    """Put a run's files in the place of an older one's; a card that lies there is that of the model beside it."""
    told = json.dumps(card, indent=2, allow_nan=False) + "\n"
    files = {PROFILE: profile, MODEL: model, PAGE: page(card).encode(), CARD: told.encode()}
    for name in (CARD, PAGE):
        (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        durable.replace(out / name, content, mode=0o644)


def check(data: Dataset, profile: Profile, recipe: Recipe, *, labelled: bool = True) -> None:
    """Refuse data that cannot teach this model, before anything is trained.

    Labels outside the classes and patients in two splits are refused when the data is read.

    Raises:
        DataError: what is missing.
    """
    if profile.task == "segmentation":
        raise DataError("task segmentation: classifiers of one class or of several findings are hardened")
    for name, split in (("train", data.train), ("test", data.test)):
        if not len(split):
            raise DataError(f"the {name} split is empty")
        if not bool(torch.isfinite(split.images).all()):
            raise DataError(f"the {name} split holds values that are no numbers")
    fewest = min(recipe.seen(epoch, len(data.train)) for epoch in range(recipe.epochs))
    if fewest < recipe.batch:
        raise DataError(f"the train split gives {fewest} scans an epoch: too few for one batch of {recipe.batch}")
    labels = data.train.labels
    for place, name in enumerate(profile.classes if labelled else ()):
        if profile.task == "multilabel":
            column = labels[:, place]
            if bool(column.all()) or not bool(column.any()):
                raise DataError(f"train: {name} is in all scans or in none, so nothing tells how it looks")
        elif not bool((labels == place).any()):
            raise DataError(f"train: class {name} has no scan")


def _tried(method: Method, course: Course) -> None:
    """Raise `DataError` where the network cannot be built for these images."""
    with torch.random.fork_rng(devices=[]), _named_errors():
        torch.manual_seed(course.seed)
        with torch.no_grad():
            method.network(course, None).eval()(course.images[:2])


class Served(nn.Module):
    """A network of images from 0 to 1, as a model of what the profile says."""

    def __init__(self, network: nn.Module, span: Span, activation: Activation) -> None:
        super().__init__()
        self.network, self._activation = network, activation
        self._plain = set(span.low) == {0.0} and set(span.high) == {1.0}
        self.low: Tensor
        self.width: Tensor
        low, high = (torch.tensor(end).view(1, -1, 1, 1) for end in (span.low, span.high))
        self.register_buffer("low", low)
        self.register_buffer("width", high - low)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) rendered images to (N, K) outputs."""
        logits: Tensor = self.network(images if self._plain else (images - self.low) / self.width)
        if self._activation is Activation.SOFTMAX:
            return logits.softmax(1)
        return logits.sigmoid() if self._activation is Activation.SIGMOID else logits


class _Clock:
    """A watch that remembers what epochs cost: processor time, which is the same beside other work."""

    def __init__(self, watch: Watch, stage: str) -> None:
        self._watch, self._stage = watch, stage
        self._times: list[float] = []

    def __call__(self, stage: str, share: float) -> None:
        if stage == self._stage:
            self._times.append(process_time())
        self._watch(stage, share)

    def seconds(self) -> float | None:
        """Median processor seconds of an epoch; None where none was run."""
        lengths = [after - before for before, after in zip(self._times, self._times[1:], strict=False)]
        return round(statistics.median(lengths), 3) if lengths else None


class _named_errors:  # noqa: N801 - reads as a word in `with`
    """Turns what a method or an attack refuses into the laboratory's error."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, ValueError):
            raise DataError(str(error)) from error


def _course(
    data: Dataset, profile: Profile, recipe: Recipe, seed: int, device: str, folder: Path, watch: Watch,
    model: bytes | None,
) -> tuple[Course, Model | None]:  # fmt: skip
    """What is learnt from, and the given model."""
    span, task = span_of(profile), Task(profile.task)
    teacher: Model | None = None
    if model is not None:
        reference = rebuilt(model, profile.output.name).to(torch.device(device))
        activation = Activation(profile.already_applied)
        teacher = lambda unit: to_logits(reference(span.from_unit(unit)), activation, task)  # noqa: E731
    origin = "" if model is None else hashlib.sha256(model).hexdigest()
    images, labels = span.to_unit(data.train.images), data.train.labels.long()
    course = Course(
        images, labels, len(profile.classes), task, recipe, seed, device, folder, watch, teacher, origin
    )  # fmt: skip
    return course, teacher


def _exported(method: Method, network: nn.Module, profile: Profile, images: Tensor) -> tuple[bytes, float]:
    """The ONNX file, and how far the model rebuilt from it is from the file."""
    served = method.served(copy.deepcopy(network).cpu().eval())
    written = export(Served(served, span_of(profile), Activation(profile.already_applied)).eval(), profile)
    return written, conversion_difference(Reference.from_onnx(written, profile.output.name), written, images)


def _run(method: Method, data: Dataset, profile: Profile, course: Course, judging: Judging) -> str:
    """What tells one run from another."""
    recipe = sorted(spoken(course.recipe).items())
    told = repr((method, data.sha256, profile.sha256, recipe, course.seed, course.device, course.origin, judging))
    return hashlib.sha256(told.encode()).hexdigest()


def _who(method: Method, profile: Profile, data: Dataset, course: Course) -> dict[str, Any]:
    """What was trained, how, and where."""
    return {
        "name": method.name, "configuration": repr(method),
        "paper": method.paper, "broken_by": method.broken_by, "limits": method.limits,
        "task": profile.task, "classes": list(data.classes), "profile_sha256": profile.sha256,
        "recipe": spoken(course.recipe), "seed": course.seed, "teacher_sha256": course.origin,
        "device": course.device, "threads": torch.get_num_threads(),
        "torch": torch.__version__, "scanward": version("scanward"),
    }  # fmt: skip


def _known(card: Path) -> dict[str, Any]:
    """The card of a finished run; empty where there is none."""
    if not card.exists():
        return {}
    found: dict[str, Any] = json.loads(card.read_text(encoding="utf-8"))
    return found


def _told(split: Split) -> dict[str, int]:
    return {"n": len(split), "patients": len(set(split.groups))}
