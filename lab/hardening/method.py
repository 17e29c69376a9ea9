"""What every method of hardening shares: a network is taught a lesson, after its teacher where it has one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from detectors.models.outputs import Task, divergence
from detectors.observation import LEVEL
from detectors.perturb import ascend
from detectors.precision import training
from lab.attacks.attack import TASKS
from lab.learning import Batch, Recipe, learn
from lab.progress import Watch
from lab.training import Classifier, folded

Model = Callable[[Tensor], Tensor]
"""(N, C, H, W) images, 0 to 1, to logits (N, K)."""

RECIPE = Recipe(smoothing=0.0, averaging=0.98)
"""Of a hardened network: the running mean of the weights is more robust than the last ones (Gowal et al. 2020,
arXiv:2010.03593)."""
WARM_UP = 0.3
"""Share of the training over which budgets grow to their full size: on few scans, a network that is attacked from the
first step learns nothing at all."""


def grown(batch: Batch) -> float:
    """Return how much of a budget is in use, 0 to 1."""
    return min(1.0, batch.share / WARM_UP)


@dataclass(frozen=True, slots=True)
class Course:
    """What a network is to learn from."""

    images: Tensor
    """(N, C, H, W) float32, 0 to 1: a grey level is 1/255, whatever the model's own range."""
    labels: Tensor
    """(N,) int64 classes, or (N, K) int64 findings, 0 or 1."""
    classes: int
    task: Task
    recipe: Recipe
    seed: int
    device: str = "cpu"
    folder: Path | None = None
    """Where an interrupted training goes on from."""
    watch: Watch = lambda _stage, _share: None
    teacher: Model | None = None
    """A model to learn from; without one, a method that needs a teacher trains its own."""
    origin: str = ""
    """Which teacher that is: its digest."""

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N,): cross-entropy, or the mean binary one over the findings."""
        return TASKS[self.task.value].loss(logits, labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(ABC):
    """A way to train a network; configured once, then called, and its `repr` is its configuration.

    Budgets are 8-bit grey levels of the window. Attacks are made on images from 0 to 1, before any normalisation, and
    stay between black and white.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    broken_by: ClassVar[str]
    """The paper that shows its limit."""
    limits: ClassVar[str]
    """In a sentence, for the card."""
    recipe: ClassVar[Recipe] = RECIPE
    labelled: ClassVar[bool] = True
    """It learns from labels; else from a teacher's answers alone."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
                raise ValueError(f"{each.name} must be above 0: {self}")

    def __call__(self, course: Course) -> nn.Module:
        """Train a network.

        Args:
            course: what to learn from, and how.

        Returns:
            The network in evaluation mode on the CPU: (N, C, H, W) images, 0 to 1, to (N, K) logits. What an attacker
            who knows it would follow, so with a gradient wherever one can be lent.

        Raises:
            DivergedError: the loss is no number any more.
        """
        teacher = self._taught(course)  # (1) the teacher
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(course.seed)
            network = self.network(course, teacher)  # (2) initial weights
        stage, epochs = f"training {self.name}", course.recipe.epochs
        course.watch(stage, 0.0)
        return learn(  # (3) the lesson
            network, course.images, course.labels, Taught(self, course, teacher),
            recipe=course.recipe, seed=course.seed, device=course.device,
            checkpoint=None if course.folder is None else course.folder / f"{self.name}.state",
            watch=lambda epoch, _loss: course.watch(stage, epoch / epochs),
        )  # fmt: skip

    @abstractmethod
    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return what one batch teaches, a scalar."""

    def teaching(self) -> Method | None:
        """Return how a teacher is trained first; None where there is none."""
        return None

    def network(self, course: Course, _teacher: Model | None) -> nn.Module:
        """Return the network with its initial weights."""
        return Classifier(course.recipe, course.images.shape[1], course.classes)

    def served(self, network: nn.Module) -> nn.Module:
        """Return what is written as ONNX, from the trained network; that one is not used again."""
        return folded(network) if isinstance(network, Classifier) else network.requires_grad_(requires_grad=False)

    def _taught(self, course: Course) -> Model | None:
        method = self.teaching()
        if method is None or course.teacher is not None:
            return course.teacher if method is not None else None
        folder = None if course.folder is None else course.folder / "teacher"
        if folder is not None:
            folder.mkdir(exist_ok=True)
        watch = course.watch
        first = replace(course, folder=folder, watch=lambda stage, share: watch(f"{stage}, as teacher", share))
        return method(first).to(course.device).requires_grad_(requires_grad=False)


@dataclass(frozen=True, slots=True)
class Taught:
    """A method's loss as the training loop takes it; its `repr` tells one training from another."""

    method: Method
    course: Course = field(repr=False)
    teacher: Model | None = field(repr=False)
    origin: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "origin", self.course.origin)

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the loss, a scalar; augmented images are brought back between black and white."""
        shown = replace(batch, images=batch.images.clamp(0.0, 1.0))
        return self.method.loss(Pupil(network, self.course, self.teacher), shown)


@dataclass(frozen=True, slots=True)
class Pupil:
    """A network in training, and what a lesson asks of it."""

    network: nn.Module
    course: Course
    teacher: Model | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """(N, K) logits, float32, of images 0 to 1."""
        with training(images.device):
            logits: Tensor = self.network(images)
        return logits.float()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of the labels, a scalar."""
        return self.course.loss(self(images), labels).mean()

    def away(self, logits: Tensor, others: Tensor) -> Tensor:
        """(N,) Kullback-Leibler divergence from one answer to another."""
        return divergence(logits, others, self.course.task)

    def told(self, images: Tensor) -> Tensor:
        """(N, K) logits of the teacher; no gradient."""
        assert self.teacher is not None
        with torch.no_grad(), training(images.device):
            return self.teacher(images).float()

    def steady(self, images: Tensor) -> Tensor:
        """(N, K) logits as in service, in evaluation mode; no gradient."""
        self.network.eval()
        with torch.no_grad():
            logits = self(images)
        self.network.train()
        return logits

    def misled(
        self, batch: Batch, *, eps: float, steps: int, stride: float, climb: Model | None = None, start: bool = True
    ) -> Tensor:
        """Return the batch attacked, by the network as it answers in service: evaluation mode.

        Args:
            batch: whose images are attacked; how far the training is says how much of the budget is used.
            eps: budget in grey levels.
            steps: of the ascent.
            stride: length of a step, as a share of the budget.
            climb: (N, K) logits to what is climbed, (N,); by default the loss of the labels.
            start: at a random point of the ball, else at the image itself.
        """
        reach = eps * LEVEL * grown(batch)
        up = climb or (lambda logits: self.course.loss(logits, batch.labels))
        self.network.eval().requires_grad_(requires_grad=False)
        changed = ascend(
            batch.images, lambda x: up(self(x)),
            eps=reach, steps=steps, size=stride * reach, low=0.0, high=1.0,
            generator=batch.noise if start else None,
        )  # fmt: skip
        self.network.train().requires_grad_(requires_grad=True)
        return changed
