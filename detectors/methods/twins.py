"""Hardened twins: two adversarially distilled companions of the protected model, and their disagreement with it.

A twin learns, from clean scans without labels, to answer as the protected model does, also under perturbation. The
statistic is minus the twin's margin for the protected model's class: large where the twin does not believe it.
Goldblum et al. 2020, arXiv:1905.09747 (adversarially robust distillation). Limits: where an attack on the protected
model fools the twin too, the twin is silent; Tramer 2022, arXiv:2107.11630, bounds what any such detector can do.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.detector import Score, spelled
from detectors.errors import NotFittedError
from detectors.material import Material
from detectors.models.outputs import Activation, Task, pooled, to_logits
from detectors.models.reference import Reference
from detectors.observation import LEVEL, Needs, Observation, Signal, Span
from detectors.perturb import ascend
from detectors.precision import training

COPIED_TWIN, SMALL_TWIN = "twinM", "twinS"
TEMPERATURE = 2.0
WARM_UP = 0.3
"""Share of the training over which the budgets grow to their full size: a twin that starts from nothing must first
learn to answer at all."""
Progress = Callable[[float], None]


class TwinDisagreement:
    """How firmly a twin holds another decision than the protected model's."""

    version = "1"
    needs = Needs(frozenset({Signal.TWINS}))

    def __init__(self, name: str) -> None:
        self.name = name

    def fit(self, _material: Material) -> "TwinDisagreement":
        """Itself: what is fitted is the twin, before any detector."""
        return self

    def score(self, seen: Observation) -> Score:
        """Score each image; in units of logits, negative where the twin agrees.

        Raises:
            NotFittedError: the observation has no such twin.
        """
        if self.name not in seen.twins:
            raise NotFittedError(self.name)
        return Score(self.name, -seen.lead_in(seen.twins[self.name]))

    def state(self) -> dict[str, Tensor]:
        """Its name: the numbers are the twin's own."""
        return {"name": spelled(self.name)}

    def from_state(self, _state: dict[str, Tensor]) -> "TwinDisagreement":
        """Itself again."""
        return self


class CopiedTwin(nn.Module):
    """twinM: the protected model's own architecture and weights, then hardened."""

    def __init__(self, reference: Reference, activation: Activation, span: Span, task: Task = Task.MULTICLASS) -> None:
        super().__init__()
        self.network = copy.deepcopy(reference)
        self._activation, self._span, self._task = activation, span, task

    def forward(self, images: Tensor) -> Tensor:
        """(N, K) logits."""
        return self.look(images)[0]

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and features (N, D) of the last default tap."""
        tap = self.network.tap_names[-1]
        output, taps = self.network.forward_with_taps(self._span.from_unit(images), (tap,))
        return to_logits(output, self._activation, self._task), pooled(taps[tap])


class _Block(nn.Module):
    """Two normalised convolutions and a way around them."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        same = stride == 1 and channels == width
        self.around: nn.Module = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, width, H / stride, W / stride)."""
        y = torch.relu(self.norm1(self.first(x)))
        return torch.relu(self.norm2(self.second(y)) + self.around(x))


class SmallTwin(nn.Module):
    """twinS: a residual network of a quarter of the cost, trained from scratch."""

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 6 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )  # fmt: skip
        blocks: list[nn.Module] = []
        before = width
        for stage, (after, depth) in enumerate(zip(widths, (2, 2, 2, 1), strict=True)):
            blocks += [_Block(before if k == 0 else after, after, 2 if k == 0 else 1) for k in range(depth)]
            before = widths[stage]
        self.body = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """(N, K) logits."""
        return self.look(images)[0]

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and features (N, D)."""
        features = self.body(self.stem(images * 4 - 2)).mean((2, 3))
        return self.head(features), features

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """Rebuild the network whose weights these are."""
        try:
            stem, head = state["stem.0.weight"], state["head.weight"]
        except KeyError as error:
            raise NotFittedError(f"twinS lacks {error}") from error
        twin = cls(stem.shape[1], head.shape[0], stem.shape[0])
        twin.load_state_dict(state)
        return twin


@dataclass(frozen=True, slots=True)
class Hardening:
    """How a twin is trained."""

    eps_low: float
    """Smallest budget that is drawn, in grey levels."""
    eps_high: float
    """Largest."""
    epochs: int
    peak: float
    """Highest learning rate of the one-cycle schedule."""
    batch: int = 64


Trained = TypeVar("Trained", CopiedTwin, SmallTwin)

COPIED = Hardening(eps_low=0.5, eps_high=5.0, epochs=14, peak=1.5e-3)
SMALL = Hardening(eps_low=1.0, eps_high=8.0, epochs=14, peak=3e-3)


def harden(
    twin: Trained,
    teacher: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    recipe: Hardening,
    seed: int,
    progress: Progress = lambda _share: None,
) -> Trained:
    """Distil the protected model into a twin, adversarially, without labels.

    The loss is KL(f(x) || t(x)) + KL(f(x) || t(x_t)) + KL(f(x) || t(x_v)) / 2 at temperature 2, where x_t is a
    two-step attack on the twin, x_v one on the protected model f, each with a budget drawn for each scan.

    Args:
        twin: the network to train, in place; may lie on an accelerator.
        teacher: the protected model, images to logits.
        images: (N, C, H, W) float32 clean scans, 0 to 1.
        recipe: budgets and schedule.
        seed: of the order, the budgets and the starts.
        progress: told the share of the work that is done.

    Returns:
        The twin, in evaluation mode and frozen.
    """
    device = next(twin.parameters()).device
    order = torch.Generator().manual_seed(seed)
    lesson = _Lesson(teacher, recipe, torch.Generator(device).manual_seed(seed))
    optimizer = torch.optim.AdamW(twin.parameters(), lr=recipe.peak, weight_decay=1e-4)
    steps = recipe.epochs * -(-len(images) // recipe.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak, total_steps=steps + 1)
    done = 0
    for _ in range(recipe.epochs):
        for chosen in torch.split(torch.randperm(len(images), generator=order), recipe.batch):
            batch = _moved(images[chosen].to(device), lesson.noise)
            with training(device):
                loss = lesson.loss(twin, batch, strength=min(1.0, done / (WARM_UP * steps)))
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            progress(done / steps)
    return twin.eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class _Lesson:
    """What one batch teaches."""

    teacher: Callable[[Tensor], Tensor]
    recipe: Hardening
    noise: torch.Generator

    def loss(self, twin: CopiedTwin | SmallTwin, images: Tensor, *, strength: float) -> Tensor:
        """A scalar: how far the twin is from the teacher on clean images and under `strength` of the full budgets."""
        with torch.no_grad():
            target = torch.softmax(self.teacher(images).float() / TEMPERATURE, 1)
        twin.eval().requires_grad_(False)
        on_twin = self._attacked(twin, images, target, strength)
        on_model = self._attacked(self.teacher, images, target, strength)
        twin.train().requires_grad_(True)
        clean = _divergence(twin(images), target)
        return (clean + _divergence(twin(on_twin), target) + 0.5 * _divergence(twin(on_model), target)).mean()

    def _attacked(self, network: Callable[[Tensor], Tensor], images: Tensor, target: Tensor, strength: float) -> Tensor:
        """Two steps that drive a network away from the teacher's clean answer."""
        share = torch.rand(len(images), 1, 1, 1, generator=self.noise, device=images.device)
        eps = (self.recipe.eps_low + share * (self.recipe.eps_high - self.recipe.eps_low)) * LEVEL * strength
        return ascend(
            images,
            lambda x: _divergence(network(x), target),
            eps=eps,
            steps=2,
            size=0.7 * eps,
            low=0.0,
            high=1.0,
            generator=self.noise,
        )


def _divergence(logits: Tensor, target: Tensor) -> Tensor:
    """(N,) Kullback-Leibler divergence from the target (N, K) to the softened answer."""
    return functional.kl_div(torch.log_softmax(logits.float() / TEMPERATURE, 1), target, reduction="none").sum(1)


def _moved(images: Tensor, noise: torch.Generator) -> Tensor:
    """A shift of up to four pixels, one for the batch, so that few scans teach more."""
    rows, columns = (int(torch.randint(-4, 5, (1,), generator=noise, device=images.device)) for _ in range(2))
    padded = functional.pad(images, (4, 4, 4, 4), mode="replicate")
    height, width = images.shape[2:]
    return padded[..., 4 + rows : 4 + rows + height, 4 + columns : 4 + columns + width]
