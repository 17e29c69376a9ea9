"""In what an attack takes its steps: every pixel by itself, or the points of a coarse grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from lab.attacks.low_frequency import smooth
from lab.attacks.scene import Scene


class Walk(Protocol):
    """A place of each image, and how a direction in the image becomes a step from there."""

    @property
    def at(self) -> Tensor:
        """(N, C, ...): the place in the walk's own terms."""
        ...

    def anywhere(self, scene: Scene, draws: torch.Generator) -> Self:
        """Return a place drawn from the ball."""
        ...

    def shown(self, scene: Scene) -> Tensor:
        """Return the points (N, C, rows, columns) of this place."""
        ...

    def drawn(self, scene: Scene, direction: Tensor) -> Tensor:
        """Return a direction (N, C, rows, columns) in the walk's own terms, shaped like `at`."""
        ...

    def stepped(self, scene: Scene, pace: Tensor, share: float) -> Self:
        """Return the place one step on: along a pace shaped like `at`, a share of the budget long."""
        ...

    def only(self, chosen: Tensor) -> Self:
        """Return the places of those chosen, a mask (N,)."""
        ...


def begun(scene: Scene, grain: int) -> Walk:
    """Return the walk from the clean images on a grid of `grain` pixels; 0: every pixel by itself."""
    if not grain:
        return Pixels(scene.clean.clone())
    rows, columns = (max(2, math.ceil(side / grain)) for side in scene.clean.shape[2:])
    return Grid(torch.zeros(*scene.clean.shape[:2], rows, columns, device=scene.clean.device))


@dataclass(frozen=True, slots=True)
class Pixels:
    """Every pixel by itself, in units of the window."""

    at: Tensor

    def anywhere(self, scene: Scene, draws: torch.Generator) -> Pixels:
        """Return a place drawn from the ball."""
        return Pixels(scene.anywhere(draws))

    def shown(self, _scene: Scene) -> Tensor:
        """Return the place itself."""
        return self.at

    def drawn(self, _scene: Scene, direction: Tensor) -> Tensor:
        """Return the direction itself."""
        return direction

    def stepped(self, scene: Scene, pace: Tensor, share: float) -> Pixels:
        """Return the place one step on, back in ball and range."""
        return Pixels(scene.step(self.at, pace, share * scene.radius))

    def only(self, chosen: Tensor) -> Pixels:
        """Return the places of those chosen."""
        return Pixels(self.at[chosen])


@dataclass(frozen=True, slots=True)
class Grid:
    """Amounts on a coarse grid, -1 to 1 shares of the radius, drawn out bilinearly to the image."""

    at: Tensor

    def anywhere(self, scene: Scene, draws: torch.Generator) -> Grid:
        """Return amounts drawn at random."""
        return Grid(2 * torch.rand(self.at.shape, generator=draws, device=scene.clean.device) - 1)

    def shown(self, scene: Scene) -> Tensor:
        """Return the images changed by the grid."""
        return smooth(scene, self.at)[0]

    def drawn(self, scene: Scene, direction: Tensor) -> Tensor:
        """Return what a direction asks of each point of the grid."""
        return smooth(scene, self.at)[1](direction)

    def stepped(self, _scene: Scene, pace: Tensor, share: float) -> Grid:
        """Return the amounts one step on."""
        return Grid((self.at + share * pace.sign()).clamp(-1.0, 1.0))

    def only(self, chosen: Tensor) -> Grid:
        """Return the amounts of those chosen."""
        return Grid(self.at[chosen])
