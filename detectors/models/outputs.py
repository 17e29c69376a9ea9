"""From what a model gives to what detectors read: logits, the decision they make, and how firmly, for each task."""

from enum import Enum, unique

import torch
from torch import Tensor

from detectors.errors import InputError

DICE_BROKEN = 0.5
"""Below this Dice coefficient with what it was, a segmentation counts as another one."""


@unique
class Activation(Enum):
    """What the model's output already went through; `to_logits` undoes it."""

    NONE = "none"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


@unique
class Task(Enum):
    """What the model decides of an image."""

    MULTICLASS = "multiclass"
    """One of K classes: logits (N, K), K at least 2; a decision is (N,) int64."""
    MULTILABEL = "multilabel"
    """Each of K findings, present or not: logits (N, K); a decision is (N, K) bool."""
    SEGMENTATION = "segmentation"
    """One of K classes for each pixel: logits (N, K, H, W), K at least 2; a decision is (N, H, W) int64."""

    @property
    def axes(self) -> int:
        """Number of axes that logits have."""
        return 4 if self is Task.SEGMENTATION else 2


def to_logits(output: Tensor, activation: Activation, task: Task = Task.MULTICLASS) -> Tensor:
    """Logits as the task has them.

    Args:
        output: (N, K), or (N, K, H, W) of a segmentation, as the model gives it.
        activation: what it went through.
        task: what the model decides.

    Returns:
        The same shape; where the model gives one number for two classes, (N, 2, ...): its logit against zero.

    Raises:
        InputError: the output has another number of axes.
    """
    if output.ndim != task.axes:
        raise InputError(f"the model gives {output.ndim} axes; a {task.value} model gives {task.axes}")
    if activation is Activation.SOFTMAX:
        output = torch.log(output.clamp_min(torch.finfo(output.dtype).tiny))
    elif activation is Activation.SIGMOID:
        output = torch.logit(output, eps=torch.finfo(output.dtype).eps)
    if output.shape[1] == 1 and task is not Task.MULTILABEL:
        return torch.cat([torch.zeros_like(output), output], 1)
    return output


def decided(logits: Tensor, task: Task = Task.MULTICLASS) -> Tensor:
    """The decision that logits make, in the form that `Task` gives."""
    return logits > 0 if task is Task.MULTILABEL else logits.argmax(1)


def margin(logits: Tensor, decision: Tensor, task: Task = Task.MULTICLASS) -> Tensor:
    """How firmly logits hold a decision, which may be another model's or another image's.

    Args:
        logits: as `Task` gives them.
        decision: likewise.
        task: what is decided.

    Returns:
        (N,), negative where the decision would be another one. By how much the decided class leads the best of the
        others; of several labels, the least firm one; of a segmentation, the mean over its pixels.
    """
    assert logits.ndim == task.axes
    if task is Task.MULTILABEL:
        return torch.where(decision, logits, -logits).amin(1)
    lead = leads(logits, decision)
    return lead.flatten(1).mean(1) if task is Task.SEGMENTATION else lead


def leads(logits: Tensor, classes: Tensor) -> Tensor:
    """(N, ...) by how much each class leads the best of the others, from (N, K, ...) logits with K at least 2."""
    assert logits.shape[1] >= 2
    chosen = logits.gather(1, classes[:, None])[:, 0]
    return chosen - logits.scatter(1, classes[:, None], -torch.inf).amax(1)


def agreement(decision: Tensor, other: Tensor, task: Task = Task.MULTICLASS) -> Tensor:
    """(N,) from 0 to 1, how far two decisions are the same, both in the form that `Task` gives.

    The same class or not; the share of labels that are the same; of a segmentation the Dice coefficient over the pixels
    of all classes but the first, the background, and 1 where neither has any.
    """
    if task is Task.MULTICLASS:
        return (other == decision).float()
    if task is Task.MULTILABEL:
        return (other == decision).float().mean(1)
    both = ((other == decision) & (decision > 0)).flatten(1).sum(1)
    either = (decision > 0).flatten(1).sum(1) + (other > 0).flatten(1).sum(1)
    return torch.where(either > 0, 2 * both / either.clamp_min(1), torch.ones_like(both, dtype=torch.float32))


def changed(decision: Tensor, logits: Tensor, task: Task = Task.MULTICLASS) -> Tensor:
    """(N,) bool: whether logits decide otherwise: another class, any other label, a Dice coefficient below a half."""
    least = DICE_BROKEN if task is Task.SEGMENTATION else 1.0
    return agreement(decision, decided(logits, task), task) < least


def divergence(logits: Tensor, others: Tensor, task: Task = Task.MULTICLASS) -> Tensor:
    """(N,) Kullback-Leibler divergence from one answer to another, in nats.

    Of several labels it is the sum over them; of a segmentation, the mean over its pixels.
    """
    if task is Task.MULTILABEL:
        p, q = (torch.stack([-values, values]) / 2 for values in (logits, others))
        own, other = torch.log_softmax(p, 0), torch.log_softmax(q, 0)
        return (own.exp() * (own - other)).sum((0, 2))
    own, other = torch.log_softmax(logits, 1), torch.log_softmax(others, 1)
    each = (own.exp() * (own - other)).sum(1)
    return each.flatten(1).mean(1) if task is Task.SEGMENTATION else each


def pooled(values: Tensor) -> Tensor:
    """(N, D) from a map (N, D, H, W), from tokens (N, T, D), or as it is."""
    if values.ndim >= 4:
        return values.flatten(2).mean(2)
    return values.mean(1) if values.ndim == 3 else values.flatten(1)
