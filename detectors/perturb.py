"""The one gradient step: how an image moves along a gradient inside a ball, L-infinity or L2.

Twin fitting and the laboratory's attacks both import `step`, so an attack and the hardening against it can
never disagree about what a budget means.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Budget = float | Tensor
"""Grey levels in the units of the images: one number, or one an image, shape (N, 1, 1, 1)."""

Norm = Literal["linf", "l2"]
"""How far two images are apart: their largest difference, or the length of all of them together."""

_NOTHING = 1e-30
"""Below this a gradient has no direction."""


def step(
    images: Tensor,
    gradient: Tensor,
    origin: Tensor,
    *,
    size: Budget,
    eps: Budget,
    low: float,
    high: float,
    norm: Norm = "linf",
) -> Tensor:
    """Take one ascending step, then return to the ball around `origin` and to the storable range.

    The step is the sign of the gradient for L-infinity, its direction for L2. Goodfellow et al. 2015,
    arXiv:1412.6572 (the sign step); Madry et al. 2018, arXiv:1706.06083 (the projection).

    Args:
        images: (N, C, H, W), where the step starts.
        gradient: (N, C, H, W) of what is to grow.
        origin: (N, C, H, W), the centre of the ball.
        size: length of the step.
        eps: radius of the ball.
        low: the smallest value an image may take.
        high: the largest.
        norm: of the ball, and of the step's length.

    Returns:
        (N, C, H, W), detached: at most `eps` from `origin`, within [low, high].
    """
    assert images.shape == gradient.shape == origin.shape
    assert low < high

    with torch.no_grad():
        return project(images + size * direction(gradient, norm), origin, eps=eps, low=low, high=high, norm=norm)


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """Return the step of length 1 that climbs most, (N, C, H, W) as the gradient; 0 where there is none."""
    if norm == "linf":
        return gradient.sign()
    return gradient / length(gradient).clamp_min(_NOTHING)


def project(moved: Tensor, origin: Tensor, *, eps: Budget, low: float, high: float, norm: Norm = "linf") -> Tensor:
    """Return the nearest point of the ball around `origin`, then of the range, which never leaves the ball again."""
    if norm == "linf":
        return torch.clamp(torch.clamp(moved, origin - eps, origin + eps), low, high)
    away = moved - origin
    return torch.clamp(origin + away * (eps / length(away).clamp_min(_NOTHING)).clamp(max=1.0), low, high)


def length(change: Tensor) -> Tensor:
    """Return (N, 1, 1, 1), the Euclidean length of each change."""
    lengths: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1)
    return lengths.view(-1, 1, 1, 1)


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
