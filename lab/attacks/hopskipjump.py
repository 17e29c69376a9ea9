"""HopSkipJump: nothing but the model's decisions, for all images of a batch at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from detectors.perturb import Norm, direction, length
from lab.attacks.boundary import Nearest, bisected
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Found, Scene

HALVINGS_MAX = 12
"""Of a step that leads back among the right answers."""
REACH = 0.01
"""Distance of the probes, as a share of that to the clean image; never so near that rounding swallows them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HopSkipJump(Method):
    """From a misread image along the boundary towards the clean one, by decisions on random probes.

    Chen et al. 2020, arXiv:1904.02144. It begins at noise, or at another image of the batch that the model answers
    otherwise: an attacker has scans. Since only storable images can be asked about, probes are no nearer than half a
    storable step a value. Limits: some thousand near-duplicate queries an image, which the gateway counts.
    """

    name: ClassVar[str] = "hopskipjump"
    knowledge: ClassVar[Knowledge] = "decisions"
    bounded: ClassVar[bool] = False

    eps: float = math.inf
    steps: int = 20
    probes: int = 100
    """Of the first step; their number grows with the square root of the steps."""
    tries: int = 20
    """Points at which a misread one is looked for."""
    halvings: int = 10
    """Of the way to the boundary, in each step."""
    norm: Norm = "l2"
    others: Tensor | None = field(default=None, repr=False)
    """(M, 1, rows, columns) stored values of scans of the attacker's own, to begin at; else those attacked together."""

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        radius, nearest = scene.radius, Nearest(scene)
        scene, wrong = begun(scene.unbound(), self.tries, draws, self.others)
        for k in range(1, self.steps + 1):
            if not len(wrong):
                break
            x = bisected(scene, wrong, self.halvings)
            nearest.keep(scene, x, scene.margin(x))
            if math.isfinite(radius):
                going = ~nearest.within(scene, radius)
                scene, x = scene.only(going), x[going]
                if not len(x):
                    break
            uphill = self._direction(scene, x, round(self.probes * math.sqrt(k)), draws)
            wrong = _advanced(scene, x, uphill, scene.distance(x) / math.sqrt(k))
        else:
            x = bisected(scene, wrong, self.halvings)
            nearest.keep(scene, x, scene.margin(x))
        return nearest.found(radius)

    def _direction(self, scene: Scene, x: Tensor, probes: int, draws: torch.Generator) -> Tensor:
        """Return the direction (N, C, rows, columns) in which wrong answers are more frequent among probes."""
        step = 0.5 / scene.target.unit * math.sqrt(x[0].numel())
        reach = (REACH * length(x - scene.clean)).clamp_min(step)
        total, signed, sign = torch.zeros_like(x), torch.zeros_like(x), torch.zeros(len(x), 1, 1, 1, device=x.device)
        for count in portions(probes, len(x), self.batch):
            noise = torch.randn(count, *x.shape, generator=draws, device=x.device)
            probe = x + reach * noise / noise.flatten(2).norm(dim=2).view(count, -1, 1, 1, 1)
            probe = probe.clamp(0.0, scene.high)
            wide = scene.only(torch.arange(len(x), device=x.device).repeat(count))
            verdict = torch.where(wide.margin(probe.flatten(0, 1)) < 0, 1.0, -1.0).view(count, -1, 1, 1, 1)
            taken = (probe - x) / reach
            total, signed, sign = total + taken.sum(0), signed + (verdict * taken).sum(0), sign + verdict.sum(0)
        mean = sign / probes
        split = signed - mean * total
        return direction(torch.where(mean.abs() < 1, split, mean * total), self.norm)

    def _norm(self) -> Norm:
        return self.norm


def begun(scene: Scene, tries: int, draws: torch.Generator, others: Tensor | None = None) -> tuple[Scene, Tensor]:
    """Return the images for which a misread point was found, and those points."""
    count = len(scene.clean)
    wrong, known = scene.clean.clone(), torch.zeros(count, dtype=torch.bool, device=scene.clean.device)
    for k in range(tries):
        if bool(known.all()):
            break
        noise = scene.high * torch.rand(scene.clean.shape, generator=draws, device=scene.clean.device)
        tried = _another(scene, k // 2, others) if k % 2 else noise
        fresh = ~known & (scene.margin(tried) < 0)
        wrong[fresh], known = tried[fresh], known | fresh
    return scene.only(known), wrong[known]


def _another(scene: Scene, number: int, others: Tensor | None) -> Tensor:
    """Return (N, 1, rows, columns): for each image another scan, of the attacker's own or of the same batch."""
    if others is None:
        return scene.clean.roll(number + 1, 0)
    chosen = others[number % len(others)].expand_as(scene.clean)
    return (chosen - scene.target.low) / scene.target.unit


def portions(probes: int, images: int, batch: int) -> Iterator[int]:
    """Yield numbers of probes that come to `probes`: with all images, each makes about four batches."""
    most = max(1, 4 * batch // images)
    while probes > 0:
        yield min(most, probes)
        probes -= most


def _advanced(scene: Scene, x: Tensor, uphill: Tensor, size: Tensor) -> Tensor:
    """Return points that are still misread, a step on, or as much of it as leads to wrong answers."""
    moved, left = x.clone(), torch.ones(len(x), dtype=torch.bool, device=x.device)
    for _ in range(HALVINGS_MAX):
        places = torch.nonzero(left)[:, 0]
        tried = (x[places] + size[places].view(-1, 1, 1, 1) * uphill[places]).clamp(0.0, scene.high)
        misread = scene.only(places).margin(tried) < 0
        moved[places[misread]], left[places[misread]] = tried[misread], False
        size = size / 2
        if not bool(left.any()):
            break
    return moved
