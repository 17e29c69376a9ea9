"""What "wrong" means: the margin and the loss of an answer, for each kind of model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

FAILED_DICE = 0.5
"""A segmentation that overlaps its label by less has failed."""


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
        return margins(logits, labels)

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
        return (logits * (2 * labels - 1)).amin(dim=1)

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
        """Return the Dice overlap less `FAILED_DICE`; its gradient is that of the pixels that are still right."""
        full = both(logits)
        lead = margins(full, labels)  # (N, height, width)
        climbed = lead.clamp(min=0.0).flatten(1).mean(dim=1)
        overlap = dice(full.argmax(dim=1), labels, full.shape[1]) - FAILED_DICE
        return climbed + (overlap - climbed).detach()

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy, the mean over the pixels."""
        return functional.cross_entropy(both(logits), labels, reduction="none").flatten(1).mean(dim=1)

    def check(self, labels: Tensor, count: int) -> None:
        """Refuse what is not a mask an image."""
        _shaped(labels, (count, *labels.shape[-2:]))


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logit of each label less the greatest other, from (N, classes, ...) logits; below 0 is wrong."""
    mine = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
    others = logits.scatter(1, labels.unsqueeze(1), -torch.inf)
    return mine - others.amax(dim=1)


def dice(answers: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return (N,): mean Dice overlap of the foreground classes that the label or the answer has; 1 where none has.

    Args:
        answers: (N, height, width) int64.
        labels: (N, height, width) int64.
        classes: how many there are, the background included.
    """
    found = torch.stack([(answers == k).flatten(1) for k in range(1, classes)]).float()  # (classes - 1, N, pixels)
    wanted = torch.stack([(labels == k).flatten(1) for k in range(1, classes)]).float()
    sizes = found.sum(dim=2) + wanted.sum(dim=2)
    overlap = 2 * (found * wanted).sum(dim=2) / sizes.clamp_min(1)
    counted = (sizes > 0).float()
    return torch.where(counted.sum(dim=0) > 0, (overlap * counted).sum(dim=0) / counted.sum(dim=0).clamp_min(1), 1.0)


def both(logits: Tensor) -> Tensor:
    """Return logits of two classes where there is one channel, of the foreground; else as they are."""
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def _shaped(labels: Tensor, shape: tuple[int, ...]) -> None:
    if labels.shape != shape or labels.dtype != torch.int64:
        raise ValueError(f"labels must be {shape} int64, got {tuple(labels.shape)} {labels.dtype}")
