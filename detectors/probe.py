"""One shared pass: everything that the detectors need of a batch, computed once."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Protocol

import torch
from torch import Tensor

from detectors.errors import ConversionError, InputError
from detectors.models.model import ReferenceModel
from detectors.models.outputs import Activation, Task, decided, margin, pooled, to_logits
from detectors.observation import Needs, Observation, Signal, Span

NEIGHBOURS_AT_ONCE = 8
"""Neighbours of a batch that are asked together: beyond it, memory grows and speed does not."""


class Twin(Protocol):
    """A hardened network that the probe can ask."""

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, K) and pooled features (N, D) of (N, C, H, W) images."""
        ...


class Probe:
    """Asks the reference model, its neighbours and its twins, each at most once a batch."""

    def __init__(
        self,
        reference: ReferenceModel,
        twins: Mapping[str, Twin],
        taps: Sequence[str],
        *,
        activation: Activation,
        span: Span,
        size: tuple[int, int],
        task: Task = Task.MULTICLASS,
    ) -> None:
        """Hold the models; all must lie on one device and be in evaluation mode.

        Args:
            reference: the protected model.
            twins: hardened models by name.
            taps: values of the reference's graph to keep as features.
            activation: what the model's outputs went through.
            span: what black and white are in the model's input.
            size: rows and columns that the model takes.
            task: what the model decides.
        """
        self.reference = reference
        self.twins = dict(twins)
        self.taps = tuple(taps)
        self.activation = activation
        self.span = span
        self.size = size
        self.task = task

    def observe(
        self, images: Tensor, needs: Needs, *, seeds: Tensor | None = None, differentiable: bool = False
    ) -> Observation:
        """See a batch once.

        (1) one forward pass with taps, and one backward pass where the input gradient is needed
        (2) one forward pass over the batch of all neighbours
        (3) one forward pass of each twin

        Args:
            images: (N, C, H, W) float32, N at least 1, as the model takes them.
            needs: the union of what the detectors need.
            seeds: (N,) int64, one an image, from which random neighbours draw: the same seed, the same draw.
            differentiable: keep the graph from `images` to every signal but the input gradient, which is held
                constant (its surrogate: exact almost everywhere for a network of ReLUs).

        Raises:
            InputError: shape, type or values that no detector may look at, or no seeds where something draws.
        """
        check_images(images, self.device)
        expected = (len(self.span.low), *self.size)
        if images.shape[1:] != expected:
            raise InputError(f"images are {tuple(images.shape[1:])}, the model takes {expected}")
        if needs.random and (seeds is None or seeds.shape != images.shape[:1] or seeds.dtype != torch.int64):
            raise InputError("a random neighbour needs one int64 seed an image")
        with nullcontext() if differentiable else torch.no_grad():
            images = self.span.to_unit(images)
            logits, features, gradient = self._look(images, needs.signals, differentiable)  # (1)
            neighbours, neighbour_features = self._look_around(images, needs, seeds)  # (2)
            twins: dict[str, Tensor] = {}
            twin_features: dict[str, Tensor] = {}
            if Signal.TWINS in needs.signals:  # (3)
                for name, twin in self.twins.items():
                    twins[name], twin_features[name] = twin.look(images)
        return Observation(
            images, logits, self.task, features, gradient, neighbours, neighbour_features, twins, twin_features
        )

    @property
    def device(self) -> torch.device:
        """Where the models lie."""
        return self.reference.device

    def logits(self, output: Tensor) -> Tensor:
        """What the model gives, as logits."""
        return to_logits(output, self.activation, self.task)

    def _look(
        self, images: Tensor, wanted: frozenset[Signal], differentiable: bool
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Logits, features and the gradient of the decision's margin."""
        taps = self.taps if Signal.FEATURES in wanted else ()
        if Signal.INPUT_GRADIENT not in wanted:
            output, kept = self.reference.forward_with_taps(self.span.from_unit(images), taps)
            return self.logits(output), {name: pooled(value) for name, value in kept.items()}, None
        if not self.reference.gradients:
            raise ConversionError("the model gives answers alone: it has no input gradient")
        with torch.enable_grad():
            leaf = images if differentiable and images.requires_grad else images.detach().requires_grad_(True)
            output, kept = self.reference.forward_with_taps(self.span.from_unit(leaf), taps)
            logits = self.logits(output)
            lead = margin(logits, decided(logits, self.task), self.task).sum()
            (gradient,) = torch.autograd.grad(lead, leaf, retain_graph=differentiable)
        features = {name: pooled(value) for name, value in kept.items()}
        if differentiable:
            return logits, features, gradient.detach()
        return logits.detach(), {name: value.detach() for name, value in features.items()}, gradient.detach()

    def _look_around(
        self, images: Tensor, needs: Needs, seeds: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Logits of the reference on every neighbour, and features where they are needed, in as few batches as fit."""
        taps = self.taps[-1:] if Signal.NEIGHBOUR_FEATURES in needs.signals else ()
        logits: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        for start in range(0, len(needs.neighbours), NEIGHBOURS_AT_ONCE):
            some = needs.neighbours[start : start + NEIGHBOURS_AT_ONCE]
            names = [each.name for each in some]
            batch = self.span.from_unit(torch.cat([each(images, seeds) for each in some]))
            output, kept = self.reference.forward_with_taps(batch, taps)
            logits |= zip(names, torch.split(self.logits(output), len(images)), strict=True)
            for value in kept.values():
                features |= zip(names, torch.split(pooled(value), len(images)), strict=True)
        return logits, features


def check_images(images: Tensor, device: torch.device) -> None:
    """Refuse what no detector may look at.

    Args:
        images: should be (N, C, H, W) float32, finite, on the device.
        device: where the models lie.

    Raises:
        InputError: says what is wrong.
    """
    if not isinstance(images, Tensor):
        raise InputError(f"images must be a tensor, not {type(images).__name__}")
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(f"images must be (N, C, H, W) with no empty axis, not {tuple(images.shape)}")
    if images.dtype != torch.float32:
        raise InputError(f"images must be float32, not {images.dtype}")
    if images.device != device:
        raise InputError(f"the images lie on {images.device}, the models on {device}")
    # a sum is ten times as quick to look at; one of finite values may overflow, so only a finite sum settles it
    if not bool(torch.isfinite(images.sum())) and not bool(torch.isfinite(images).all()):
        raise InputError("an image has values that are not finite")
