"""The one training loop of every learned denoiser, and what each may be asked to get right."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.errors import InputError
from detectors.models.outputs import Task, decided
from detectors.observation import LEVEL
from detectors.precision import training
from detectors.windows import window

Lesson = Callable[[Tensor, torch.Generator], Tensor]
"""Places (M,) of the scans of one batch, and a generator on the CPU, to a loss: a scalar."""
Progress = Callable[[float], None]

_EPOCHS, _BATCH, _PEAK, _STEPS_MIN = 20, 32, 2e-3, 300
_NOISE_LEVELS = 4.0
CROP = 64
"""Side of the windows that are shown, in pixels."""


def train(
    network: nn.Module, count: int, lesson: Lesson, *, seed: int, progress: Progress, epochs: int = _EPOCHS
) -> None:
    """Teach a network, in place; it is left in evaluation mode and frozen.

    Args:
        network: what the lesson's loss depends on.
        count: number of scans.
        lesson: the loss of a batch.
        seed: of the order, and of what the lesson draws.
        progress: told the share of the work that is done.
        epochs: how often each scan is seen, or oftener where the scans are few.

    Raises:
        InputError: fewer than two scans.
    """
    if count < 2:
        raise InputError(f"{count} images are too few to train a denoiser")
    network.train()
    generator = torch.Generator().manual_seed(seed)
    batches = -(-count // _BATCH)
    epochs = max(epochs, -(-_STEPS_MIN // batches))
    steps = epochs * batches
    optimizer = torch.optim.AdamW(network.parameters(), lr=_PEAK, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK, total_steps=steps + 1)
    done = 0
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(count, generator=generator), _BATCH):
            loss = lesson(chosen, generator)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            done += 1
            progress(done / steps)
    network.eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class Goal:
    """What a restored image must have in common with the clean one."""

    loss: Callable[[Tensor, Tensor], Tensor]
    """Restored and clean images, (N, C, H, W), 0 to 1, to a scalar."""
    whole: bool
    """Whether it asks a model, which takes whole images; else windows of them teach as much for less."""


def closeness() -> Goal:
    """The same pixels: the mean squared error, in grey levels. Zhang et al. 2017, arXiv:1608.03981."""
    return Goal(lambda restored, clean: functional.mse_loss(restored / LEVEL, clean / LEVEL), whole=False)


def stability(model: Callable[[Tensor], Tensor], task: Task = Task.MULTICLASS) -> Goal:
    """The same answer: what the model itself decides of the clean scan, so that no label is needed.

    Salman et al. 2020, arXiv:2003.01908 (denoised smoothing; its "stability" loss).

    Args:
        model: the protected model, images to logits.
        task: what it decides.
    """

    def loss(restored: Tensor, clean: Tensor) -> Tensor:
        with torch.no_grad():
            decision = decided(model(clean), task)
        logits = model(restored)
        if task is Task.MULTILABEL:
            return functional.binary_cross_entropy_with_logits(logits, decision.to(logits.dtype))
        return functional.cross_entropy(logits, decision)

    return Goal(loss, whole=True)


def guidance(features: Callable[[Tensor], Tensor]) -> Goal:
    """The same features: their mean absolute difference, by the size of those of the clean scan.

    Liao et al. 2018, arXiv:1712.02976 (high-level representation guided denoiser; its feature-guided form).

    Args:
        features: of the protected model, images to maps (N, D, h, w).
    """

    def loss(restored: Tensor, clean: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = features(clean)
        return (features(restored) - wanted).abs().mean() / wanted.abs().mean().clamp_min(1e-6)

    return Goal(loss, whole=True)


@dataclass(frozen=True, slots=True)
class Restoration:
    """The lesson of a denoiser: scans with noise, with an attack of any strength, or with both, back to clean ones."""

    network: nn.Module
    images: Tensor
    """(N, C, H, W) clean scans, 0 to 1."""
    attacked: Tensor
    """(N, C, H, W) the same scans as an attacker of the protected model would change them."""
    goal: Goal
    device: torch.device

    def __call__(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """The loss of one batch."""
        clean, attacked = self.images[chosen], self.attacked[chosen]
        if not self.goal.whole:
            place = window(clean, CROP, generator)
            clean, attacked = clean[place], attacked[place]
        noisy = _spoilt(clean, attacked, generator)
        with training(self.device):
            restored = self.network(noisy.to(self.device)).float()
        return self.goal.loss(restored, clean.to(self.device))


def _spoilt(clean: Tensor, attacked: Tensor, generator: torch.Generator) -> Tensor:
    """The clean batch with noise, with an attack of any strength, with both, or as it is."""
    each = (len(clean), 1, 1, 1)
    strength = torch.rand(each, generator=generator) * (torch.rand(each, generator=generator) < 2 / 3)
    sigma = torch.rand(each, generator=generator) * _NOISE_LEVELS * LEVEL
    sigma = sigma * (torch.rand(each, generator=generator) < 1 / 2)
    noise = torch.randn(clean.shape, generator=generator) * sigma
    return (clean + strength * (attacked - clean) + noise).clamp(0, 1)
