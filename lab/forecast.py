"""How long a fit will take: a few timed passes through the networks, times how many each stage makes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from detectors.denoisers.learned import Learned
from detectors.denoisers.registry import KINDS
from detectors.methods.fusion import Fusion
from detectors.methods.gradient_residual import GradientResidual
from detectors.methods.twins import Hardening
from detectors.models.small import SmallTwin
from lab import sparring
from lab.development import STEPS
from lab.measuring import LEVELS
from lab.workbench import ALL_ROUNDS, ATTACK_ROUNDS, ATTACKED_MAX, FAMILY_ROUNDS, Workbench

Forecast = Mapping[str, float]
"""Seconds by stage, as the stages are told of to a watch."""

_TIMED = 8
"""Images in a timed batch: the fit's own batches are larger and no slower an image."""
_STEPS = sum(STEPS) / len(STEPS)
_LOOKS = 4
"""Forward passes through the model when a scan is examined: itself, and the usual neighbours."""
_VARIANTS = 4 + 2 * ALL_ROUNDS
"""Of each scan that D learns from: clean, two that must not alarm, moved, every attack, and each on another scan."""
_MEASURING_STEPS = 10
_COURSE = 8
"""Times that a denoiser sees each scan."""


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds an image."""

    ahead: float
    """Forward through the protected model."""
    there_and_back: float
    """Forward, and the gradient by the image; of a model that only answers, by way of the attackers' own."""
    small: float
    """Forward and back through the small twin."""
    denoising: Mapping[str, float]
    """The same through each denoiser that learns, on a window as large as it learns from."""

    @classmethod
    def of(cls, bench: Workbench, images: Tensor, denoisers: Sequence[str]) -> "Pace":
        """Time each pass once, after one that warms up; nothing is drawn from any generator that the fit uses."""
        unit = bench.span.to_unit(images[:_TIMED].to(bench.device))
        with torch.random.fork_rng(devices=[]):
            twin = SmallTwin(unit.shape[1], bench.classes, task=bench.task).to(bench.device)
            learned = {
                name: kind.network(unit.shape[1]).to(bench.device)
                for name in denoisers
                if issubclass(kind := KINDS[name], Learned)
            }

        def ahead() -> None:
            with torch.no_grad():
                bench.model(unit)

        return cls(
            _timed(ahead, unit),
            _timed(lambda: _there_and_back(bench.model, unit), unit),
            _timed(lambda: _there_and_back(twin, unit), unit),
            {name: _timed(partial(_there_and_back, net, unit[..., :64, :64]), unit) for name, net in learned.items()},
        )


def forecast(
    pace: Pace, *, fit: int, held: int, a: int, test: int, gradients: bool, recipes: tuple[Hardening, Hardening],
    methods: Sequence[str], rounds: int,
) -> Forecast:  # fmt: skip
    """Seconds of each stage that takes long; what is counted is what the stages do, and nothing is rounded up.

    Args:
        pace: as timed.
        fit: scans to learn from.
        held: scans to weigh the twins by.
        a: scans to order by.
        test: scans to measure on.
        gradients: whether the model gives any.
        recipes: how the copied and the small twin are hardened.
        methods: names of the detectors.
        rounds: of the fusion against who knows it.
    """
    ahead, both, small = pace.ahead, pace.there_and_back, pace.small
    attack = _STEPS * both + (2 + 7 / 3) * ahead  # seven halvings, of each third
    look = _LOOKS * ahead + (both if gradients else 0.0) + small
    some, aimed = min(fit, ATTACKED_MAX), GradientResidual.name in methods
    copied, own = recipes
    stages = {
        "hardening the small twin": own.steps * own.batch * (2 * both + ahead + 5 * small),
        "simulating attacks": (ALL_ROUNDS if aimed else ATTACK_ROUNDS) * some * attack,
        "simulating attacks on held-out scans": FAMILY_ROUNDS * held * attack,
        "trying the members": FAMILY_ROUNDS * a * (attack + look),
        "measuring": test * (look + len(LEVELS) * (_MEASURING_STEPS * both + 2 * ahead + look)),
    }
    if gradients:
        stages["hardening the copied twin"] = copied.steps * copied.batch * (7 * both + ahead)
    if aimed:
        stages[f"fitting {GradientResidual.name}"] = _VARIANTS * some * both
    if rounds:  # two gradients, of the way to a wrong answer and of the way to calm, share a pass ahead
        step = 1.5 * ((_LOOKS + 1) * both + small)
        stages[f"fitting {Fusion.name}"] = rounds * min(held, sparring.ATTACKED) * sparring.STEPS * step
    for name, seconds in pace.denoising.items():
        stages[f"training {name}"] = _COURSE * fit * seconds
        stages["attacking for the denoisers"] = fit * (3 * both + ahead) if gradients else 0.0
    return stages


def _there_and_back(network: Callable[[Tensor], Tensor], images: Tensor) -> None:
    with torch.enable_grad():
        leaf = images.detach().clone().requires_grad_(True)
        torch.autograd.grad(network(leaf).float().sum(), leaf)


def _timed(run: Callable[[], None], images: Tensor) -> float:
    """Seconds an image, of the second run."""
    seconds = 0.0
    for _ in range(2):
        _wait(images.device)
        began = perf_counter()
        run()
        _wait(images.device)
        seconds = perf_counter() - began
    return seconds / len(images)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
