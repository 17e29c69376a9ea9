"""From what a model gives to what detectors read: logits and pooled features."""

from enum import Enum, unique

import torch
from torch import Tensor

from detectors.errors import InputError


@unique
class Activation(Enum):
    """What the model's output already went through; `to_logits` undoes it."""

    NONE = "none"
    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"


def to_logits(output: Tensor, activation: Activation) -> Tensor:
    """Logits of at least two classes.

    Args:
        output: (N, K) as the model gives it.
        activation: what it went through.

    Returns:
        (N, K); (N, 2) where the model gives one number, the logit of the second class against zero.
    """
    if output.ndim != 2:
        raise InputError(f"the model gives {output.ndim} axes; one row of class scores an image is supported")
    if activation is Activation.SOFTMAX:
        output = torch.log(output.clamp_min(torch.finfo(output.dtype).tiny))
    elif activation is Activation.SIGMOID:
        output = torch.logit(output, eps=torch.finfo(output.dtype).eps)
    return torch.cat([torch.zeros_like(output), output], 1) if output.shape[1] == 1 else output


def pooled(values: Tensor) -> Tensor:
    """(N, D) from a map (N, D, H, W), from tokens (N, T, D), or as it is."""
    if values.ndim >= 4:
        return values.flatten(2).mean(2)
    return values.mean(1) if values.ndim == 3 else values.flatten(1)
