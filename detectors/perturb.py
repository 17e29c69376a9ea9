"""The one gradient step: how an image moves along a gradient inside an L-infinity ball.

Twin fitting and the laboratory's attacks both import `step`, so an attack and the hardening against it can
never disagree about what a budget means.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Budget = float | Tensor
"""Grey levels in the units of the images: one number, or one an image, shape (N, 1, 1, 1)."""


def step(
    images: Tensor,
    gradient: Tensor,
    origin: Tensor,
    *,
    size: Budget,
    eps: Budget,
    low: float,
    high: float,
) -> Tensor:
    """Take one ascending sign step, then return to the ball around `origin` and to the storable range.

    Goodfellow et al. 2015, arXiv:1412.6572 (the sign step); Madry et al. 2018, arXiv:1706.06083 (the projection).

    Args:
        images: (N, C, H, W), where the step starts.
        gradient: (N, C, H, W) of what is to grow.
        origin: (N, C, H, W), the centre of the ball.
        size: length of the step.
        eps: radius of the ball in the L-infinity norm.
        low: the smallest value an image may take.
        high: the largest.

    Returns:
        (N, C, H, W), detached: at most `eps` from `origin` in every pixel, within [low, high].
    """
    assert images.shape == gradient.shape == origin.shape
    assert low < high

    with torch.no_grad():
        moved = images + size * gradient.sign()
        return torch.clamp(torch.clamp(moved, origin - eps, origin + eps), low, high)


def ascend(
    images: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    eps: Budget,
    steps: int,
    size: Budget,
    low: float,
    high: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Climb `loss` for `steps` sign steps from a random point of the ball.

    Args:
        images: (N, C, H, W) clean images, the centre of the ball.
        loss: maps (N, C, H, W) to (N,) or to a scalar; what the perturbation must make large.
        eps: radius of the ball.
        steps: number of gradient steps, at least 1.
        size: length of a step.
        low: the smallest value an image may take.
        high: the largest.
        generator: draws the start, on the device of `images`; None starts at the images themselves.

    Returns:
        (N, C, H, W), detached.
    """
    assert steps >= 1

    origin = images.detach()
    current = origin
    if generator is not None:
        noise = torch.rand(origin.shape, generator=generator, device=origin.device, dtype=origin.dtype)
        current = torch.clamp(origin + (2 * noise - 1) * eps, low, high)
    for _ in range(steps):
        leaf = current.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(loss(leaf).sum(), leaf)
        current = step(leaf, gradient, origin, size=size, eps=eps, low=low, high=high)
    return current
