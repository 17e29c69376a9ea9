"""The running mean of a network's weights, which a training may keep beside the weights themselves."""

from collections.abc import Mapping

from torch import Tensor


def begun(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A mean of these weights alone."""
    return {name: value.clone() for name, value in weights.items()}


def move(mean: dict[str, Tensor], weights: Mapping[str, Tensor], *, kept: float) -> None:
    """Move the mean towards the present weights, in place; counters are taken as they are.

    Args:
        mean: as `begun` gave it.
        weights: of the same network.
        kept: share of the mean that stays, 0 to 1.
    """
    for name, value in weights.items():
        if value.is_floating_point():
            mean[name].lerp_(value, 1 - kept)
        else:
            mean[name].copy_(value)
