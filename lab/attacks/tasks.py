"""What an attack climbs, for each kind of model: how far an answer is from its label, as `outputs` judges answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from detectors.models import outputs


class Task(Protocol):
    """How the answers of one kind of model are judged."""

    def margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return (N,): below 0 where the answer is wrong; falls, and has a gradient, on the way there."""
        ...

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return (N,): what training makes small."""
        ...

    def check(self, labels: Tensor, count: int) -> None:
        """Refuse labels that are not those of `count` images.

        Raises:
            ValueError: wrong shape or type.
        """
        ...


@dataclass(frozen=True, slots=True)
class Multiclass:
    """One class of several: (N, classes) logits, (N,) int64 labels."""

    def margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the logit of each label less the greatest other."""
        return outputs.margin(logits, labels)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy."""
        return functional.cross_entropy(logits, labels, reduction="none")

    def check(self, labels: Tensor, count: int) -> None:
        """Refuse what is not one class an image."""
        _shaped(labels, (count,))


@dataclass(frozen=True, slots=True)
class Multilabel:
    """Any number of findings: (N, findings) logits, (N, findings) int64 labels, 0 or 1.

    An image is misread as soon as one finding is. Xu et al. 2021, arXiv:2103.03438, attack the mean binary
    cross-entropy over all findings, which is `loss`.
    """

    def margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the least of the findings' logits, each counted from its threshold towards its label."""
        return outputs.margin(logits, labels.bool(), outputs.Task.MULTILABEL)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the binary cross-entropy, the mean over the findings."""
        return functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=1)

    def check(self, labels: Tensor, count: int) -> None:
        """Refuse what is not a row of 0 and 1 an image."""
        _shaped(labels, (count, labels.shape[-1]))
        if labels.numel() and not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError("labels of findings must be 0 or 1")


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A class for each pixel: (N, classes, height, width) logits, (N, height, width) int64 labels; 0 is background.

    One channel of logits is a foreground against a background of logit 0.
    """

    def margin(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the Dice overlap less that of failure; its gradient is that of the pixels that are still right."""
        full = both(logits)
        climbed = outputs.leads(full, labels).clamp(min=0.0).flatten(1).mean(dim=1)
        overlap = outputs.agreement(labels, full.argmax(dim=1), outputs.Task.SEGMENTATION) - outputs.DICE_BROKEN
        return climbed + (overlap - climbed).detach()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy, the mean over the pixels."""
        return functional.cross_entropy(both(logits), labels, reduction="none").flatten(1).mean(dim=1)

    def check(self, labels: Tensor, count: int) -> None:
        """Refuse what is not a mask an image."""
        _shaped(labels, (count, *labels.shape[-2:]))


def both(logits: Tensor) -> Tensor:
    """Return logits of two classes where there is one channel, of the foreground; else as they are."""
    return outputs.to_logits(logits, outputs.Activation.NONE, outputs.Task.SEGMENTATION)


def _shaped(labels: Tensor, shape: tuple[int, ...]) -> None:
    if labels.shape != shape or labels.dtype != torch.int64:
        raise ValueError(f"labels must be {shape} int64, got {tuple(labels.shape)} {labels.dtype}")
