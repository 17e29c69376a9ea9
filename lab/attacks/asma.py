"""ASMA: an adaptive segmentation mask attack, which makes a model draw the mask that the attacker wants."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from detectors.perturb import Norm, direction
from lab.attacks.attack import Target
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Best, Found, Scene
from lab.attacks.tasks import Segmentation, both

Wanted = Literal["mirrored", "empty", "other"]
"""The mask to be drawn: the label's mirror image, none at all, or that of the next image of the batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ASMA(Method):
    """Ascends the wanted class's logit where it is not yet the answer, less the squared length of the change.

    Ozbulak et al. 2019, arXiv:1907.13124: the sum runs over the pixels that are still wrong for the attacker, so none
    is pushed further than it needs, and steps grow with the overlap reached. Their step is a multiple of the raw
    gradient; here it is a length, so that no network needs other figures. Limits: for masks alone; blind to detectors.
    """

    name: ClassVar[str] = "asma"
    knowledge: ClassVar[Knowledge] = "gradients"
    bounded: ClassVar[bool] = False

    eps: float = math.inf
    steps: int = 100
    growth: float = 0.4
    """Length of a step at full overlap, in grey levels as the root of the mean square; added to `least`."""
    least: float = 0.1
    wanted: Wanted = "mirrored"
    price: float = 1.0
    """Of the squared length, beside the mean logit."""

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if self.wanted not in get_args(Wanted):
            raise ValueError(f"wanted must be one of {', '.join(get_args(Wanted))}: {self}")

    def _search(self, scene: Scene, _start: int, _draws: torch.Generator) -> Found:
        best, goals = Best(scene), wanted(scene.labels, self.wanted)
        x, pixels = scene.clean, math.sqrt(scene.clean[0].numel())
        for _ in range(self.steps):
            leaf = x.detach().requires_grad_(True)
            with torch.enable_grad():
                logits = both(scene.logits(leaf))
                answer = logits.argmax(dim=1)
                missing = logits.gather(1, goals[:, None])[:, 0] * (answer != goals)
                far = (leaf - scene.clean).square().flatten(1).sum(dim=1)
                climbed = missing.flatten(1).mean(dim=1) - self.price * far / pixels**2
                (gradient,) = torch.autograd.grad(climbed.sum(), leaf)
            best.keep(scene, x, scene.judge(logits.detach()))
            rate = (self.growth * overlap(answer, goals) + self.least) / 255 * pixels
            x = scene.inside(x + rate.view(-1, 1, 1, 1) * direction(gradient, "l2"))
        best.keep(scene, x, scene.margin(x))
        return best.found()

    def _scene(self, target: Target, images: Tensor, labels: Tensor, _start: int) -> Scene:
        if not isinstance(target.task, Segmentation):
            raise ValueError("asma attacks masks: the target's task must be segmentation")
        return Scene.of(target, images, labels, eps=self.eps, norm="l2")

    def _norm(self) -> Norm:
        return "l2"


def wanted(labels: Tensor, how: Wanted) -> Tensor:
    """Return the masks (N, height, width) that the attacker wants."""
    if how == "empty":
        return torch.zeros_like(labels)
    return labels.flip(2) if how == "mirrored" else labels.roll(1, 0)


def overlap(answers: Tensor, goals: Tensor) -> Tensor:
    """Return (N,): intersection over union of the foregrounds with the right class; 1 where there is none."""
    found, sought = (answers > 0).flatten(1), (goals > 0).flatten(1)
    both_of_them = (found & sought & (answers == goals).flatten(1)).sum(dim=1).float()
    either = (found | sought).sum(dim=1).float()
    return torch.where(either > 0, both_of_them / either.clamp_min(1), 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deformation(Method):
    """A smooth displacement with a smooth change of intensity, both optimised: what anatomy and coils do, on purpose.

    After Chen et al. 2019, adversarial deformation and intensity for segmentation, and Xiao et al. 2018,
    arXiv:1801.02612. A mask is displaced with its image and is then the right answer. Limits: no ball holds it, nor
    does one measure it; a registration would.
    """

    name: ClassVar[str] = "deformation"
    knowledge: ClassVar[Knowledge] = "gradients"
    bounded: ClassVar[bool] = False

    eps: float = math.inf
    pixels: float = 2.0
    """Largest displacement along each axis."""
    gain: float = 1.1
    """Largest factor of intensity, and its inverse the least."""
    grid: int = 5
    """Points of the coarse grid of both fields, a side."""
    steps: int = 40
    stride: float = 0.15
    """Length of a sign step, as a share of both bounds."""

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        best = Best(scene)
        size = (len(scene.clean), 3, self.grid, self.grid)
        weights = 0.5 * (2 * torch.rand(size, generator=draws, device=scene.clean.device) - 1)
        for k in range(self.steps + 1):
            leaf = weights.detach().requires_grad_(True)
            with torch.enable_grad():
                fields = functional.interpolate(leaf, scene.clean.shape[2:], mode="bilinear", align_corners=True)
                x = self._deformed(scene, fields)
                logits = scene.logits(x)
                moved = self._labels(scene, fields.detach(), logits)
                climbed = -scene.target.task.margin(logits, moved)
                (gradient,) = torch.autograd.grad(climbed.sum(), leaf)
            best.keep(scene, x.detach(), -climbed.detach())
            if k < self.steps:
                weights = (weights + self.stride * gradient.sign()).clamp(-1.0, 1.0)
        return best.found()

    def _deformed(self, scene: Scene, fields: Tensor) -> Tensor:
        """Return points displaced and relit by fields (N, 3, rows, columns), -1 to 1."""
        black = (scene.target.black - scene.target.low) / scene.target.unit
        x = functional.grid_sample(scene.clean, self._places(fields), padding_mode="border", align_corners=True)
        return x + (x - black).clamp_min(0) * ((math.log(self.gain) * fields[:, 2:]).exp() - 1)

    def _labels(self, scene: Scene, fields: Tensor, logits: Tensor) -> Tensor:
        """Return what is now right: masks go with their image."""
        if not isinstance(scene.target.task, Segmentation):
            return scene.labels
        rows, columns = scene.clean.shape[2:]
        if logits.shape[2:] != (rows, columns):
            raise ValueError("a deformed mask needs a model whose output is as large as the stored image")
        places = self._places(fields)
        return functional.grid_sample(
            scene.labels[:, None].float(), places, mode="nearest", padding_mode="border", align_corners=True
        )[:, 0].long()  # fmt: skip

    def _places(self, fields: Tensor) -> Tensor:
        """Return (N, rows, columns, 2): where each pixel comes from, across and down, -1 to 1."""
        rows, columns = fields.shape[2:]
        down, across = (torch.linspace(-1, 1, side, device=fields.device) for side in (rows, columns))
        grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)
        reach = torch.tensor([2 * self.pixels / (columns - 1), 2 * self.pixels / (rows - 1)], device=fields.device)
        return grid + reach * fields[:, :2].permute(0, 2, 3, 1)
