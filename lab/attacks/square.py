"""The Square attack: random squares, kept where the scores fall; no gradient needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Best, Found, Scene

HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Shares of the queries after which the squares have half the area."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Square(Method):
    """Random search over squares at the corners of the L-infinity ball, all images of a batch at once.

    Andriushchenko et al. 2020, arXiv:1912.00049. Limits: thousands of queries, which a gateway that counts near
    duplicates sees (docs/limits.md); it is here since no masked gradient hinders it.
    """

    name: ClassVar[str] = "square"
    knowledge: ClassVar[Knowledge] = "scores"

    queries: int = 5000
    restarts: int = 1
    share: float = 0.8
    """Of the image's area that the first squares have."""

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        best = Best(scene)
        channels, columns = scene.clean.shape[1], scene.clean.shape[3]
        least, most = (scene.inside(scene.clean + sign * scene.radius) for sign in (-1, 1))
        x = torch.where(_heads((len(least), channels, 1, columns), draws), most, least)
        margin = scene.margin(x)
        for query in range(1, self.queries):
            going = margin >= 0
            if not bool(going.all()):
                best.keep(scene, x, margin)
                scene, x, margin, least, most = scene.only(going), x[going], margin[going], least[going], most[going]
                if not len(x):
                    break
            side = self._side(query, scene.clean.shape[2:])
            where = _squares(x, side, draws)
            tried = torch.where(where, torch.where(_heads((len(x), channels, 1, 1), draws), most, least), x)
            found = scene.margin(tried)
            better = found < margin
            x = torch.where(better.view(-1, 1, 1, 1), tried, x)
            margin = torch.where(better, found, margin)
        best.keep(scene, x, margin)
        return best.found()

    def _side(self, query: int, size: torch.Size) -> int:
        """Pixels in the side of the squares of one query."""
        share = self.share / 2 ** sum(query >= due * self.queries for due in HALVINGS)
        side = round(math.sqrt(share * size[0] * size[1]))
        return max(1, min(side, size[0], size[1]))

    def _starts(self, _classes: int) -> int:
        return self.restarts


def _heads(shape: tuple[int, ...], draws: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=draws, device=draws.device) == 1


def _squares(x: Tensor, side: int, draws: torch.Generator) -> Tensor:
    """Return (N, 1, rows, columns) bool: a square in each image."""
    inside = []
    for axis in (2, 3):
        length = x.shape[axis]
        first = torch.randint(length - side + 1, (len(x), 1), generator=draws, device=x.device)
        place = torch.arange(length, device=x.device)
        inside.append((place >= first) & (place < first + side))
    return (inside[0][:, :, None] & inside[1][:, None, :]).unsqueeze(1)
