"""For attacks that look for the nearest wrong image: the way onto a plane inside the range, and the nearest so far."""

from __future__ import annotations

import torch
from torch import Tensor

from detectors.perturb import Norm
from lab.attacks.scene import Found, Scene

NEWTON_STEPS = 25
"""More than any plane needed; each saturates at least one more value, and all values of equal room at once."""

_NOTHING = 1e-30
_SLACK = 1e-6
"""Units of the window that arithmetic may add to a distance: far below a storable step of 16 bits."""


def onto_plane(x: Tensor, normal: Tensor, rise: Tensor, *, high: float, norm: Norm) -> Tensor:
    """Return the shortest change (N, C, rows, columns) that lifts a linear function by `rise`, inside the range.

    The amount that each value moves is piecewise linear in one number, and concave, so Newton's method climbs to it
    from below. Where the whole range does not reach, the change is as much as there is.

    Args:
        x: (N, C, rows, columns) points.
        normal: the function's gradient, shaped like them.
        rise: (N,) by how much it is to change.
        high: greatest value; the least is 0.
        norm: in which the change is to be short.
    """
    slope = (normal * rise.sign().view(-1, 1, 1, 1)).flatten(1)
    flat = x.flatten(1)
    room = torch.where(slope > 0, high - flat, flat).clamp_min(0)
    weight = slope.abs()
    pace = torch.ones_like(weight) if norm == "linf" else weight
    wanted, travel = rise.abs(), torch.zeros_like(rise)
    for _ in range(NEWTON_STEPS):
        amount = torch.minimum(travel[:, None] * pace, room)
        missing = wanted - (weight * amount).sum(dim=1)
        steep = (weight * pace * (amount < room)).sum(dim=1)
        if bool((missing <= 1e-5 * wanted + _NOTHING).all()) or bool((steep <= 0).all()):
            break
        travel = travel + torch.where(steep > 0, missing.clamp_min(0) / steep.clamp_min(_NOTHING), 0.0)
    amount = torch.minimum(travel[:, None] * pace, room)
    return (amount * slope.sign()).view_as(x)


class Nearest:
    """The nearest misread, storable point of each image so far."""

    def __init__(self, scene: Scene) -> None:
        self.images = scene.clean.clone()
        self.distance = torch.full((len(scene.clean),), torch.inf, device=scene.clean.device)
        self.margin = torch.full_like(self.distance, torch.inf)

    def keep(self, scene: Scene, x: Tensor, margin: Tensor, *, confidence: float = 0.0) -> Tensor:
        """Take the points that are misread by more than `confidence` and nearer than any before; return which (N,)."""
        whole = scene.whole(x)
        distance = scene.distance(whole)
        better = (margin < -confidence) & (distance < self.distance[scene.index])
        places = scene.index[better]
        self.images[places], self.distance[places] = whole[better], distance[better]
        self.margin[places] = margin[better]
        return better

    def within(self, scene: Scene, radius: float) -> Tensor:
        """Return (N,), which images of a scene have a point in the ball."""
        return self.distance[scene.index] <= radius + _SLACK

    def found(self, radius: float) -> Found:
        """Return the points in the ball; an image without one has margin infinity."""
        return Found(self.images, torch.where(self.distance <= radius + _SLACK, self.margin, torch.inf))


def bisected(scene: Scene, wrong: Tensor, steps: int) -> Tensor:
    """Return points (N, C, rows, columns) just on the wrong side of the boundary, on the way from the clean images.

    The way is a straight line for L2; for L-infinity, the largest change that is let through shrinks.
    """
    near, far = torch.zeros(len(wrong), device=wrong.device), torch.ones(len(wrong), device=wrong.device)
    for _ in range(steps):
        middle = (near + far) / 2
        misread = scene.margin(towards(scene, wrong, middle)) < 0
        near, far = torch.where(misread, near, middle), torch.where(misread, middle, far)
    return towards(scene, wrong, far)


def towards(scene: Scene, wrong: Tensor, share: Tensor) -> Tensor:
    """Return the points that have come a share (N,) of the distance from the clean images to wrong ones."""
    away, wide = wrong - scene.clean, share.view(-1, 1, 1, 1)
    if scene.norm == "l2":
        return scene.clean + wide * away
    most = wide * away.abs().amax(dim=(1, 2, 3), keepdim=True)
    return scene.clean + away.clamp(-most, most)
