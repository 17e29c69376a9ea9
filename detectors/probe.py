"""One shared pass: everything that the detectors need of a batch, computed once."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from detectors.errors import InputError
from detectors.methods.twins import Twin
from detectors.models.outputs import Activation, pooled, to_logits
from detectors.models.reference import Reference
from detectors.neighbours import Neighbour
from detectors.observation import Observation, Signal, Span, margin


class Probe:
    """Asks the reference model, its neighbours and its twins, each at most once a batch."""

    def __init__(
        self,
        reference: Reference,
        twins: Mapping[str, Twin],
        taps: Sequence[str],
        shifts: Sequence[Neighbour],
        *,
        activation: Activation,
        span: Span,
        size: tuple[int, int],
    ) -> None:
        """Hold the models; all must lie on one device and be in evaluation mode.

        Args:
            reference: the protected model.
            twins: hardened models by name.
            taps: values of the reference's graph to keep as features.
            shifts: the neighbours of an image.
            activation: what the model's outputs went through.
            span: what black and white are in the model's input.
            size: rows and columns that the model takes.
        """
        self.reference = reference
        self.twins = dict(twins)
        self.taps = tuple(taps)
        self.shifts = tuple(shifts)
        self.activation = activation
        self.span = span
        self.size = size

    def observe(self, images: Tensor, needs: Iterable[Signal], *, differentiable: bool = False) -> Observation:
        """See a batch once.

        (1) one forward pass with taps, and one backward pass where the input gradient is needed
        (2) one forward pass over the batch of all neighbours
        (3) one forward pass of each twin

        Args:
            images: (N, C, H, W) float32, N at least 1, as the model takes them.
            needs: the union of what the detectors need.
            differentiable: keep the graph from `images` to every signal but the input gradient, which is held
                constant (its surrogate: exact almost everywhere for a network of ReLUs).

        Raises:
            InputError: shape, type or values that no detector may look at.
        """
        check_images(images)
        expected = (len(self.span.low), *self.size)
        if images.shape[1:] != expected:
            raise InputError(f"images are {tuple(images.shape[1:])}, the model takes {expected}")
        wanted = frozenset(needs)
        with nullcontext() if differentiable else torch.no_grad():
            images = self.span.to_unit(images)
            logits, features, gradient = self._look(images, wanted, differentiable)  # (1)
            shifts = self._look_around(images) if Signal.SHIFTS in wanted else {}  # (2)
            twins: dict[str, Tensor] = {}
            twin_features: dict[str, Tensor] = {}
            if Signal.TWINS in wanted:  # (3)
                for name, twin in self.twins.items():
                    twins[name], twin_features[name] = twin.look(images)
        return Observation(images, logits, features, gradient, shifts, twins, twin_features)

    def _look(
        self, images: Tensor, wanted: frozenset[Signal], differentiable: bool
    ) -> tuple[Tensor, dict[str, Tensor], Tensor | None]:
        """Logits, features and the gradient of the top margin."""
        taps = self.taps if Signal.FEATURES in wanted else ()
        if Signal.INPUT_GRADIENT not in wanted:
            output, kept = self.reference.forward_with_taps(self.span.from_unit(images), taps)
            return to_logits(output, self.activation), {name: pooled(value) for name, value in kept.items()}, None
        with torch.enable_grad():
            leaf = images if differentiable and images.requires_grad else images.detach().requires_grad_(True)
            output, kept = self.reference.forward_with_taps(self.span.from_unit(leaf), taps)
            logits = to_logits(output, self.activation)
            lead = margin(logits, logits.argmax(1)).sum()
            (gradient,) = torch.autograd.grad(lead, leaf, retain_graph=differentiable)
        features = {name: pooled(value) for name, value in kept.items()}
        if differentiable:
            return logits, features, gradient.detach()
        return logits.detach(), {name: value.detach() for name, value in features.items()}, gradient.detach()

    def _look_around(self, images: Tensor) -> dict[str, Tensor]:
        """Logits of the reference on every neighbour, all in one batch."""
        if not self.shifts:
            return {}
        batch = self.span.from_unit(torch.cat([shift(images) for shift in self.shifts]))
        logits = torch.split(to_logits(self.reference(batch), self.activation), len(images))
        return {shift.name: part for shift, part in zip(self.shifts, logits, strict=True)}


def check_images(images: Tensor) -> None:
    """Refuse what no detector may look at.

    Raises:
        InputError: says what is wrong.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(f"images must be (N, C, H, W) with no empty axis, not {tuple(images.shape)}")
    if images.dtype != torch.float32:
        raise InputError(f"images must be float32, not {images.dtype}")
    if not bool(torch.isfinite(images).all()):
        raise InputError("an image has values that are not finite")
