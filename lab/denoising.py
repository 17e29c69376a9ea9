"""Makes the denoisers that are asked for, and measures what each does to the model's answers."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from detectors.denoisers.denoiser import Denoiser
from detectors.denoisers.diffusion import Diffusion
from detectors.denoisers.dncnn import StableDnCNN
from detectors.denoisers.hgd import HGD
from detectors.denoisers.learned import Learned
from detectors.denoisers.registry import KINDS
from detectors.denoisers.training import Goal, closeness, guidance, stability
from detectors.denoisers.unet import StableUNet
from detectors.denoisers.windowed import Windowed
from detectors.models.kinds import rebuilt
from detectors.models.outputs import Task, decided, margin
from detectors.observation import LEVEL
from detectors.perturb import ascend
from gateway.profile import Profile
from lab.data import DataError, Split
from lab.development import on_grid, storable
from lab.progress import Watch
from lab.statistics import clopper_pearson
from lab.workbench import BATCH, Workbench, staged

USUAL = ("dncnn", "median")
"""Those that a fit leaves unless others are asked for. The image that the first one gives is the one that goes on."""
EVERY = tuple(KINDS)
LEVELS = (1, 2, 4, 8)
"""Budgets of the attacks that a denoiser is measured against, in grey levels."""
STEPS = 10
_BATCHES, _ROUNDS = (1, 16), 7

Filter = Callable[[Tensor], Tensor]


def make(bench: Workbench, names: Sequence[str], images: Tensor) -> dict[str, Denoiser]:
    """Denoisers by name, in the order in which they are asked for; those that learn are trained.

    Args:
        bench: the protected model.
        names: keys of `detectors.denoisers.registry.KINDS`.
        images: (N, C, H, W) clean scans, as the model takes them.

    Raises:
        DataError: no such denoiser, one named twice, or one that needs gradients of a model that has none.
    """
    check(names)
    unit = bench.span.to_unit(images)
    goals = {name: _goal(name, bench) for name in names if issubclass(KINDS[name], Learned)}
    attacked = _attacked(bench, unit) if goals and bench.reference.gradients else unit
    made: dict[str, Denoiser] = {}
    for name in names:
        kind, course = KINDS[name], _Course(bench, f"training {name}")
        if issubclass(kind, Windowed):
            made[name] = kind(bench.span)
        elif issubclass(kind, Learned):
            made[name] = kind.fit(unit, attacked, goal=goals[name], **course.settings())
        elif issubclass(kind, Diffusion):
            made[name] = kind.fit(unit, **course.settings())
        else:
            made[name] = kind()
    return made


def check(names: Sequence[str]) -> None:
    """Raise `DataError` unless these are names of denoisers, each once."""
    strangers = [name for name in names if name not in KINDS]
    if strangers:
        raise DataError(f"no denoiser is called {', '.join(strangers)}; there are {', '.join(KINDS)}")
    if len(set(names)) < len(names):
        raise DataError(f"a denoiser is named twice: {', '.join(names)}")


@dataclass(frozen=True, slots=True)
class Effect:
    """What one denoiser does; every rate is that of right answers, with its interval."""

    name: str
    surrogate: str | None
    """What stands in for its gradient where it has none: attacks that know of it go through that."""
    clean: Mapping[str, Any]
    oblivious: Mapping[int, Mapping[str, Any]]
    """By budget, among scans read correctly: under an attack on the model alone."""
    informed: Mapping[int, Mapping[str, Any]]
    """The same under an attack on denoiser and model together."""
    milliseconds: Mapping[int, float]
    """By batch, of one image."""


def measure(
    bench: Workbench,
    denoisers: Mapping[str, Denoiser],
    scans: Split,
    *,
    attacked: int,
    levels: Sequence[int] = LEVELS,
    steps: int = STEPS,
) -> list[Effect]:
    """The effect of each denoiser on scans that nothing was fitted on; the first row is that of none.

    The attack is projected gradient descent on the margin, ten steps of a quarter of the budget unless told otherwise,
    rounded to storable values before it is judged. One restart of few steps: what it does not break may yet break.

    Args:
        bench: the protected model.
        denoisers: by name.
        scans: labelled; of a model that names one class.
        attacked: how many correctly read scans are attacked at most.
        levels: budgets in grey levels.
        steps: of the attack.

    Raises:
        DataError: no scan is read correctly.
    """
    unit = bench.span.to_unit(scans.images)
    right = (_answers(bench.model, unit, bench.device) == scans.labels).nonzero()[:attacked, 0]
    if not len(right):
        raise DataError("the model reads none of the test scans correctly: there is nothing to attack")
    start, labels = unit[right], scans.labels[right]
    found = {}
    with staged(bench.watch, "attacking the model", len(levels)) as done:
        for level in levels:
            found[level] = _attack(bench, bench.model, start, labels, level, steps)
            done()
    effects = []
    filters: dict[str, Filter] = {"none": _same, **denoisers}
    for name, denoise in filters.items():
        with staged(bench.watch, f"measuring {name}", 1 + len(levels)) as done:
            through = _through(bench, denoise)
            clean = _accuracy(through, unit, scans.labels, bench.device)
            done()
            oblivious, informed = {}, {}
            for level in levels:
                oblivious[level] = _accuracy(through, found[level], labels, bench.device)
                own = _attack(bench, through, start, labels, level, steps) if name in denoisers else found[level]
                informed[level] = _accuracy(through, own, labels, bench.device)
                done()
            surrogate = denoisers[name].surrogate if name in denoisers else None
            effects.append(Effect(name, surrogate, clean, oblivious, informed, _times(bench, denoise, scans.images)))
    return effects


def table(effects: Sequence[Effect]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of cells, as people read them; rates in per cent, without their intervals."""
    levels, batches = list(effects[0].oblivious), list(effects[0].milliseconds)
    columns = ["denoiser", "clean", *(f"PGD {level}" for level in levels), *(f"informed {level}" for level in levels)]
    rows = []
    for each in effects:
        rates = [each.clean, *each.oblivious.values(), *each.informed.values()]
        times = [f"{each.milliseconds[size]:.3g}" for size in batches]
        rows.append([each.name, *(f"{100 * found['rate']:.1f}" for found in rates), *times])
    return [*columns, *(f"ms at {size}" for size in batches)], rows


def told(effects: Sequence[Effect], *, as_json: bool) -> str:
    """The effects as one JSON document, or as tab-separated lines under their headings."""
    if as_json:
        return json.dumps([asdict(effect) for effect in effects])
    columns, rows = table(effects)
    return "\n".join("\t".join(line) for line in (columns, *rows))


def bench(model: bytes, profile: Profile, device: torch.device, seed: int, watch: Watch) -> Workbench:
    """A place to make and to measure denoisers for a model.

    Raises:
        ConversionError: the model cannot be rebuilt.
        DataError: its answers cannot be held against a label, or cannot be attacked.
    """
    if profile.task != "multiclass":
        raise DataError(f"task {profile.task}: denoisers are measured on models that name one class")
    reference = rebuilt(model, profile.output.name).to(device)
    if not reference.gradients:
        raise DataError("the model gives no gradients: no attack could tell what a denoiser is worth")
    return Workbench(reference, profile, device, seed, watch)


@dataclass(frozen=True, slots=True)
class _Course:
    """How a denoiser is trained on a bench."""

    bench: Workbench
    stage: str

    def settings(self) -> dict[str, Any]:
        """What every `fit` is told."""
        return {
            "span": self.bench.span,
            "seed": self.bench.seed + 8,
            "device": self.bench.device,
            "progress": lambda share: self.bench.watch(self.stage, share),
        }


def _goal(name: str, bench: Workbench) -> Goal:
    """What a denoiser that learns is to restore."""
    if name in (StableDnCNN.name, StableUNet.name, HGD.name) and not bench.reference.gradients:
        raise DataError(f"{name} learns from the model's gradients, and this model gives none")
    if name in (StableDnCNN.name, StableUNet.name):
        return stability(bench.model, bench.task)
    if name == HGD.name:
        return guidance(bench.features)
    return closeness()


def _attacked(bench: Workbench, unit: Tensor) -> Tensor:
    """The scans (N, C, H, W), 0 to 1, under attacks of four grey levels."""
    noise = torch.Generator(bench.device).manual_seed(bench.seed + 7)
    parts = []
    with staged(bench.watch, "attacking for the denoisers", -(-len(unit) // BATCH)) as done:
        for part in torch.split(unit, BATCH):
            clean = part.to(bench.device)
            with torch.no_grad():
                decision = decided(bench.model(clean), bench.task)
            eps = 4 * LEVEL
            loss = partial(_doubt, bench.model, decision, task=bench.task)
            changed = ascend(clean, loss, eps=eps, steps=3, size=eps / 2, low=0.0, high=1.0, generator=noise)
            parts.append(changed.cpu())
            done()
    return torch.cat(parts)


def _doubt(model: Filter, decision: Tensor, unit: Tensor, task: Task = Task.MULTICLASS) -> Tensor:
    """(N,) how little a model holds a decision on images (N, C, H, W), 0 to 1."""
    return -margin(model(unit), decision, task)


def _through(bench: Workbench, denoise: Filter) -> Filter:
    """The protected model after a denoiser: (N, C, H, W), 0 to 1, to logits."""
    return lambda unit: bench.model(bench.span.to_unit(denoise(bench.span.from_unit(unit))))


def _same(images: Tensor) -> Tensor:
    return images


def _attack(bench: Workbench, model: Filter, unit: Tensor, labels: Tensor, level: int, steps: int) -> Tensor:
    """Away from the right answers, whatever the model says of the clean images."""
    generator = torch.Generator(bench.device).manual_seed(bench.seed + 99)
    eps, fine, parts = level * LEVEL, not on_grid(unit), []
    for part, of in zip(torch.split(unit, BATCH), torch.split(labels, BATCH), strict=True):
        clean, right = part.to(bench.device), of.to(bench.device)
        loss = partial(_doubt, model, right)
        changed = ascend(clean, loss, eps=eps, steps=steps, size=eps / 4, low=0.0, high=1.0, generator=generator)
        parts.append(storable(changed, clean, fine=fine).cpu())
    return torch.cat(parts)


def _answers(model: Filter, unit: Tensor, device: torch.device) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part.to(device)).argmax(1).cpu() for part in torch.split(unit, BATCH)])


def _accuracy(model: Filter, unit: Tensor, labels: Tensor, device: torch.device) -> Mapping[str, Any]:
    return clopper_pearson(int((_answers(model, unit, device) == labels).sum()), len(labels))


def _times(bench: Workbench, denoise: Filter, images: Tensor) -> dict[int, float]:
    """By batch, the median milliseconds of one image."""
    found = {}
    for size in _BATCHES:
        batch = images[torch.arange(size) % len(images)].to(bench.device)
        seconds = []
        for _ in range(_ROUNDS):
            started = perf_counter()
            with torch.no_grad():
                denoise(batch)
            if bench.device.type == "cuda":
                torch.cuda.synchronize(bench.device)
            seconds.append(perf_counter() - started)
        found[size] = 1000 * statistics.median(seconds) / size
    return found
