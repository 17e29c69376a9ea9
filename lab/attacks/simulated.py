"""Attacks that see scores and no gradient: it is simulated from differences, for all images of a batch at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from detectors.perturb import length
from lab.attacks.adam import Adam
from lab.attacks.hopskipjump import portions
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Best, Found, Scene

LEAST, MOST = 0.05, 0.2
"""Shares of the budget between which a step adapts itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NES(Method):
    """Sign steps along a gradient simulated from pairs of opposite random probes.

    Ilyas et al. 2018, arXiv:1804.08598 (natural evolution strategies). Limits: two queries a probe; where scores are
    rounded or withheld there is nothing to see, and the gateway withholds them.
    """

    name: ClassVar[str] = "nes"
    knowledge: ClassVar[Knowledge] = "scores"

    steps: int = 50
    probes: int = 50
    """Pairs in each step."""
    reach: float = 1.0
    """Standard deviation of the probes, in grey levels; less than a storable step would be rounded away."""
    stride: float = 0.1
    """Length of a step, as a share of the budget."""

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        best = Best(scene)
        x = scene.clean
        for _ in range(self.steps):
            slope = simulated(scene, x, self.probes, self.reach / 255, draws, batch=self.batch)
            x = scene.step(x, slope, self.stride * scene.radius)
            margin = scene.margin(x)
            best.keep(scene, x, margin)
            going = margin >= 0
            if not bool(going.all()):
                scene, x = scene.only(going), x[going]
                if not len(x):
                    break
        return best.found()


@dataclass(frozen=True, slots=True, kw_only=True)
class ZOO(Method):
    """Adam on a few cells of the image at a time, each one's slope taken from two queries.

    Chen et al. 2017, arXiv:1708.03999 (zeroth-order optimisation), in the reduced space of cells that the authors use
    for large images, and inside an L-infinity ball. Limits: the slowest of the score-based attacks.
    """

    name: ClassVar[str] = "zoo"
    knowledge: ClassVar[Knowledge] = "scores"

    steps: int = 100
    cells: int = 32
    """Cells whose slope is taken in each step: two queries each."""
    grain: int = 4
    """Pixels in the side of a cell."""
    rate: float = 0.2
    """Length of a step, as a share of the budget."""

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        best = Best(scene)
        rows, columns = (math.ceil(side / self.grain) for side in scene.clean.shape[2:])
        cells = scene.clean.shape[1] * rows * columns
        amounts = torch.zeros(len(scene.clean), cells, device=scene.clean.device)
        adam = Adam.of(amounts)
        count = min(self.cells, cells)
        for _ in range(self.steps):
            chosen = torch.rand(amounts.shape, generator=draws, device=amounts.device).argsort(dim=1)[:, :count]
            slopes = self._slopes(scene, amounts, chosen, columns)
            adam, down = adam.after(torch.zeros_like(amounts).scatter(1, chosen, slopes))
            picked = torch.zeros_like(amounts).scatter(1, chosen, 1.0)
            amounts = (amounts - self.rate * down * picked).clamp(-1.0, 1.0)
            x = self._drawn(scene, amounts, columns)
            margin = scene.margin(x)
            best.keep(scene, x, margin)
            going = margin >= 0
            if not bool(going.all()):
                scene, amounts, adam = scene.only(going), amounts[going], adam.only(going)
                if not len(amounts):
                    break
        return best.found()

    def _slopes(self, scene: Scene, amounts: Tensor, chosen: Tensor, columns: int) -> Tensor:
        """Return (N, cells), the slope of the margin by the amount of each chosen cell."""
        found = []
        for places in torch.split(chosen, max(1, 2 * self.batch // len(amounts)), dim=1):
            count = places.shape[1]
            wide = scene.only(torch.arange(len(amounts), device=amounts.device).repeat_interleave(count))
            at = amounts.repeat_interleave(count, dim=0)
            sides = [
                wide.margin(self._drawn(wide, at.scatter_add(1, places.reshape(-1, 1), sign), columns))
                for sign in (torch.full((len(at), 1), end, device=at.device) for end in (0.5, -0.5))
            ]
            found.append((sides[0] - sides[1]).view(-1, count))
        return torch.cat(found, dim=1)

    def _drawn(self, scene: Scene, amounts: Tensor, columns: int) -> Tensor:
        """Return points changed by shares (N, cells) of the radius."""
        grid = amounts.view(len(amounts), scene.clean.shape[1], -1, columns)
        wide = functional.interpolate(grid, scale_factor=self.grain, mode="nearest")
        rows, across = scene.clean.shape[2:]
        return scene.inside(scene.clean + scene.radius * wide[:, :, :rows, :across])


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientSimulation(Method):
    """A simulated gradient that adapts itself: what probes said is remembered, and steps grow while they pay.

    After Zhang et al., self-adaptive gradient simulation for medical images (black box); the rule here is our own: a
    step that lowers the margin makes the next one half as long again, one that does not halves it. Limits: those of
    NES, with fewer queries.
    """

    name: ClassVar[str] = "gradient-simulation"
    knowledge: ClassVar[Knowledge] = "scores"

    steps: int = 60
    probes: int = 25
    """Pairs in each step."""
    reach: float = 1.0
    """Standard deviation of the probes, in grey levels."""
    memory: float = 0.7
    """Share of the last direction that goes into the next."""

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        best = Best(scene)
        x, margin = scene.clean, scene.margin(scene.clean)
        guide = torch.zeros_like(x)
        size = torch.full((len(x), 1, 1, 1), MOST * scene.radius, device=x.device)
        for _ in range(self.steps):
            slope = simulated(scene, x, self.probes, self.reach / 255, draws, batch=self.batch)
            guide = self.memory * guide + (1 - self.memory) * slope / length(slope).clamp_min(1e-12)
            tried = scene.step(x, guide, size)
            found = scene.margin(tried)
            best.keep(scene, tried, found)
            paid = (found < margin).view(-1, 1, 1, 1)
            x, margin = tried, found
            size = (size * torch.where(paid, 1.5, 0.5)).clamp(LEAST * scene.radius, MOST * scene.radius)
            going = margin >= 0
            if not bool(going.all()):
                scene, x, margin = scene.only(going), x[going], margin[going]
                guide, size = guide[going], size[going]
                if not len(x):
                    break
        return best.found()


def simulated(
    scene: Scene,
    x: Tensor,
    probes: int,
    reach: float,
    draws: torch.Generator,
    *,
    batch: int,
) -> Tensor:
    """Return a direction (N, C, rows, columns) in which the margin falls, from pairs of opposite random probes.

    Args:
        scene: the images, and the model to ask.
        x: (N, C, rows, columns), where.
        probes: pairs an image.
        reach: standard deviation of the probes, in units of the window.
        draws: of the probes.
        batch: about a quarter of the images asked about at once.
    """
    slope = torch.zeros_like(x)
    for count in portions(probes, len(x), batch):
        noise = torch.randn(count, *x.shape, generator=draws, device=x.device)
        wide = scene.only(torch.arange(len(x), device=x.device).repeat(count))
        ahead, behind = (wide.margin((x + end * reach * noise).flatten(0, 1)) for end in (1, -1))
        slope = slope + ((behind - ahead).view(count, -1, 1, 1, 1) * noise).sum(dim=0)
    return slope
