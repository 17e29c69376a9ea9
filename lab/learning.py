"""The one training loop: recipe, augmentation, schedule, running mean and checkpoints; a lesson says what is learnt."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from detectors.augmentation import Augmentation
from detectors.averaging import begun, move
from lab.data import DataError


class DivergedError(DataError):
    """The loss of a training is no number any more."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a classifier is built and trained; the defaults learn 1,300 chest X-rays in about two minutes."""

    widths: tuple[int, ...] = (24, 48, 88, 128)
    """Channels of each stage."""
    blocks: tuple[int, ...] = (2, 2, 2, 1)
    """Residual blocks of each stage."""
    strides: tuple[int, ...] = (2, 2, 2, 2)
    """Of the first block of each stage; the stem halves the image before."""
    epochs: int = 18
    batch: int = 64
    peak_rate: float = 4e-3
    """Largest learning rate of the one-cycle schedule."""
    weight_decay: float = 0.02
    smoothing: float = 0.02
    """Label smoothing."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    pacing: tuple[float, ...] = ()
    """Share of the images, from the front, that each of the first epochs sees; later ones see all. For images in the
    order of their difficulty: curriculum learning (Bengio et al. 2009, doi:10.1145/1553374.1553380)."""
    averaging: float = 0.0
    """How much of the running mean of the weights stays at each step, once there have been many; 0 keeps the last
    weights themselves. Polyak and Juditsky 1992, doi:10.1137/0330046."""

    def seen(self, epoch: int, images: int) -> int:
        """How many of the images epoch 0, 1, ... sees."""
        return round(self.pacing[epoch] * images) if epoch < len(self.pacing) else images

    def steps(self, images: int) -> int:
        """Batches of the whole training; what does not fill one is left for the next epoch's shuffling."""
        return sum(self.seen(epoch, images) // self.batch for epoch in range(self.epochs))


@dataclass(frozen=True, slots=True)
class Batch:
    """What a network is shown in one step."""

    images: Tensor
    """(B, C, H, W) float32, augmented, on the network's device."""
    labels: Tensor
    share: float
    """Of the training that lies behind, 0 to 1."""
    draws: torch.Generator
    """On the CPU, for what else this step draws there."""
    noise: torch.Generator
    """The same on the network's device."""


class Lesson(Protocol):
    """What a batch teaches: all that tells one method of training from another."""

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the loss, a scalar; the network is in training mode and must be left in it."""
        ...


Network = TypeVar("Network", bound=nn.Module)


def learn(
    network: Network,
    images: Tensor,
    labels: Tensor,
    lesson: Lesson,
    *,
    recipe: Recipe,
    seed: int,
    watch: Callable[[int, float], None],
    device: str = "cpu",
    checkpoint: Path | None = None,
) -> Network:
    """Teach a network: the loop of every training in the laboratory. Methods differ in the lesson and the network.

    Args:
        network: with its initial weights; trained in place.
        images: (N, C, H, W) float32.
        labels: (N, ...) of them.
        lesson: the loss of a batch; its `repr` is part of what tells one training from another.
        recipe: schedule and augmentation.
        seed: of the order, the augmentation, and whatever the lesson draws.
        watch: called after each epoch with its number, from 1, and the mean loss.
        device: where to train.
        checkpoint: file that is written after each epoch, and from which an interrupted training goes on. It is left:
            a finished training is taken up at its end.

    Returns:
        The network in evaluation mode on the CPU.

    Raises:
        DivergedError: the loss is no number any more.
    """
    draws = torch.Generator().manual_seed(seed)
    network = cast("Network", network.to(device).to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    run = _Run.start(network, recipe, images=len(images), device=device, seed=seed)
    digest = _digest(images, labels, recipe, seed, repr(lesson))
    first = run.resume(checkpoint, digest, draws) if checkpoint is not None else 0
    for epoch in range(first, recipe.epochs):
        seen = recipe.seen(epoch, len(images))
        loss = _epoch(run, images[:seen], labels[:seen], lesson, recipe=recipe, draws=draws, epoch=epoch)  # (1) learn
        if checkpoint is not None:
            run.save(checkpoint, digest, draws, epoch + 1)  # (2) remember
        watch(epoch + 1, loss)
    if run.mean:
        network.load_state_dict(run.mean)
    return network.cpu().eval()


@dataclass(slots=True)
class _Run:
    """What changes while a network learns."""

    model: nn.Module
    optimizer: torch.optim.AdamW
    schedule: torch.optim.lr_scheduler.OneCycleLR
    noise: torch.Generator
    mean: dict[str, Tensor]
    """Running mean of the weights, where the recipe asks for one."""
    steps: int
    done: int = 0

    @classmethod
    def start(cls, model: nn.Module, recipe: Recipe, *, images: int, device: str, seed: int) -> _Run:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay, fused=device != "cpu"
        )
        steps = recipe.steps(images)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=steps, pct_start=0.25)
        mean = begun(model.state_dict()) if recipe.averaging else {}
        return cls(model, optimizer, schedule, torch.Generator(device).manual_seed(seed), mean, steps)

    def step(self, loss: Tensor, averaging: float) -> None:
        """Go down the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.schedule.step()
        self.done += 1
        kept = min(averaging, self.done / (self.done + 9))  # early on, the first weights would weigh too much
        if self.mean:
            move(self.mean, self.model.state_dict(), kept=kept)

    def save(self, path: Path, digest: str, draws: torch.Generator, epoch: int) -> None:
        """Write everything that the next epoch needs; the old file is replaced only by a whole new one."""
        state = {
            "digest": digest,
            "epoch": epoch,
            "done": self.done,
            "draws": draws.get_state(),
            "noise": self.noise.get_state(),
            "model": self.model.state_dict(),
            "mean": self.mean,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        part = path.with_suffix(path.suffix + ".part")
        torch.save(state, part)
        part.replace(path)

    def resume(self, path: Path, digest: str, draws: torch.Generator) -> int:
        """Take up a saved training of the same images and recipe, and return how many epochs it has had."""
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True)
        if state["digest"] != digest:
            return 0
        draws.set_state(state["draws"])
        self.noise.set_state(state["noise"])
        self.model.load_state_dict(state["model"])
        self.mean = {name: value.to(self.noise.device) for name, value in state["mean"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.done = int(state["done"])
        return int(state["epoch"])


def _epoch(
    run: _Run, images: Tensor, labels: Tensor, lesson: Lesson, *, recipe: Recipe, draws: torch.Generator, epoch: int
) -> float:
    """Show every image once, and return the mean loss."""
    device = run.noise.device
    run.model.train()
    total = 0.0
    order = torch.randperm(len(images), generator=draws)
    batches = len(images) // recipe.batch
    for chosen in torch.split(order[: batches * recipe.batch], recipe.batch):
        shown = recipe.augmentation(images[chosen], draws).to(device, memory_format=torch.channels_last)
        loss = lesson(run.model, Batch(shown, labels[chosen].to(device), run.done / run.steps, draws, run.noise))
        found = float(loss.detach())
        if not math.isfinite(found):
            raise DivergedError(f"the loss is {found} in epoch {epoch + 1}: lower the rate of {recipe.peak_rate:g}")
        run.step(loss, recipe.averaging)
        total += found
    return total / batches


def _digest(images: Tensor, labels: Tensor, recipe: Recipe, seed: int, lesson: str) -> str:
    """Return what tells one training from another."""
    told = hashlib.sha256(repr((sorted(asdict(recipe).items()), seed, tuple(images.shape), lesson)).encode())
    told.update(images.contiguous().numpy().tobytes())
    told.update(labels.numpy().tobytes())
    return told.hexdigest()
