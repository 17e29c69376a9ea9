"""Hardened twins: two adversarially distilled companions of the protected model, and their disagreement with it.

A twin learns, from clean scans without labels, to answer as the protected model does, also under perturbation. The
statistic is minus the twin's margin for the protected model's class: large where the twin does not believe it.
Goldblum et al. 2020, arXiv:1905.09747 (adversarially robust distillation). Limits: where an attack on the protected
model fools the twin too, the twin is silent; Tramer 2022, arXiv:2107.11630, bounds what any such detector can do.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from detectors.augmentation import Augmentation
from detectors.averaging import begun, move
from detectors.detector import Score, spelled
from detectors.errors import NotFittedError
from detectors.material import Material, Progress
from detectors.models.model import ReferenceModel
from detectors.models.outputs import Activation, Task, divergence, pooled, to_logits
from detectors.models.small import SmallTwin
from detectors.observation import LEVEL, Needs, Observation, Signal, Span
from detectors.perturb import ascend
from detectors.precision import training

COPIED_TWIN, SMALL_TWIN = "twinM", "twinS"
TEMPERATURE = 2.0
WARM_UP = 0.3
"""Share of the training over which the budgets grow to their full size: a twin that starts from nothing must first
learn to answer at all."""
AVERAGED = 0.2
"""Share of the training that the twin's weights are a moving average of: the last steps of a hardening know their own
attacks too well (Rice et al. 2020, arXiv:2002.11569), and their mean less so (Gowal et al. 2020, arXiv:2010.03593)."""
MOVED = Augmentation(rotation_deg=8.0, scale=0.06, shift=0.03, gain=0.08)
"""The teacher answers for moved scans as for any: without labels, few scans teach as much as many."""


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

    def __init__(
        self, reference: ReferenceModel, activation: Activation, span: Span, task: Task = Task.MULTICLASS
    ) -> None:
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


@dataclass(frozen=True, slots=True)
class Hardening:
    """How a twin is trained."""

    eps_low: float
    """Smallest budget that is drawn, in grey levels."""
    eps_high: float
    """Largest."""
    steps: int
    """Batches that it sees, however many scans there are: they bound the time, and few scans are seen more often."""
    peak: float
    """Highest learning rate of the one-cycle schedule."""
    batch: int = 64


Trained = TypeVar("Trained", CopiedTwin, SmallTwin)

COPIED = Hardening(eps_low=0.5, eps_high=5.0, steps=480, peak=1.5e-3)
SMALL = Hardening(eps_low=1.0, eps_high=8.0, steps=480, peak=3e-3)


def harden(
    twin: Trained,
    teacher: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    recipe: Hardening,
    seed: int,
    task: Task = Task.MULTICLASS,
    progress: Progress = lambda _share: None,
) -> Trained:
    """Distil the protected model into a twin, adversarially, without labels.

    The loss is KL(f(x) || t(x)) + KL(f(x) || t(x_t)) + KL(f(x) || t(x_v)) / 2 at temperature 2, where x_t is a
    two-step attack on the twin, x_v one on the protected model f, each with a budget drawn for each scan. Scans are
    moved before they are shown, and the twin that is returned has the mean of the last steps' weights.

    Args:
        twin: the network to train, in place; may lie on an accelerator.
        teacher: the protected model, images to logits.
        images: (N, C, H, W) float32 clean scans, 0 to 1.
        recipe: budgets and schedule.
        seed: of the order, the budgets and the starts.
        task: what the model decides.
        progress: told the share of the work that is done.

    Returns:
        The twin, in evaluation mode and frozen.
    """
    device = next(twin.parameters()).device
    twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    order = torch.Generator().manual_seed(seed)
    lesson = Lesson(teacher, recipe, task, torch.Generator(device).manual_seed(seed))
    optimizer = torch.optim.AdamW(twin.parameters(), lr=recipe.peak, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak, total_steps=recipe.steps + 1)
    mean = begun(twin.state_dict())
    kept = 1 - 1 / max(1.0, AVERAGED * recipe.steps)
    for done, chosen in zip(range(recipe.steps), _batches(len(images), recipe.batch, order), strict=False):
        batch = MOVED(images[chosen].to(device), lesson.noise).clamp(0, 1)
        batch = batch.contiguous(memory_format=torch.channels_last)
        with training(device):
            loss = lesson.loss(twin, batch, strength=min(1.0, done / (WARM_UP * recipe.steps)))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        move(mean, twin.state_dict(), kept=kept)
        progress((done + 1) / recipe.steps)
    twin.load_state_dict(mean)
    return twin.eval().requires_grad_(False)


def _batches(count: int, size: int, order: torch.Generator) -> Iterator[Tensor]:
    """Indices of one batch after another, for ever: every image once before any is seen again."""
    while True:
        yield from torch.split(torch.randperm(count, generator=order), size)


@dataclass(frozen=True, slots=True)
class Lesson:
    """What one batch teaches."""

    teacher: Callable[[Tensor], Tensor]
    recipe: Hardening
    task: Task
    noise: torch.Generator

    def loss(self, twin: nn.Module, images: Tensor, *, strength: float) -> Tensor:
        """A scalar: how far the twin is from the teacher on clean images and under `strength` of the full budgets."""
        with torch.no_grad():
            answer = self.teacher(images).float()
        twin.eval().requires_grad_(False)
        on_twin = self._attacked(twin, images, answer, strength)
        on_model = self._attacked(self.teacher, images, answer, strength)
        twin.train().requires_grad_(True)
        clean, hard, easy = (self._away(answer, twin(shown)) for shown in (images, on_twin, on_model))
        return (clean + hard + 0.5 * easy).mean()

    def _attacked(self, network: Callable[[Tensor], Tensor], images: Tensor, answer: Tensor, strength: float) -> Tensor:
        """Two steps that drive a network away from the teacher's clean answer."""
        share = torch.rand(len(images), 1, 1, 1, generator=self.noise, device=images.device)
        eps = (self.recipe.eps_low + share * (self.recipe.eps_high - self.recipe.eps_low)) * LEVEL * strength
        return ascend(
            images,
            lambda x: self._away(answer, network(x)),
            eps=eps,
            steps=2,
            size=0.7 * eps,
            low=0.0,
            high=1.0,
            generator=self.noise,
        )

    def _away(self, answer: Tensor, logits: Tensor) -> Tensor:
        """(N,) Kullback-Leibler divergence from the teacher's softened answer to a network's."""
        return divergence(answer / TEMPERATURE, logits.float() / TEMPERATURE, self.task)
