"""One change that misleads the model on most images, made once and added to any."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lab.attacks.attack import Attacked, Target, check
from lab.attacks.method import Knowledge
from lab.attacks.rehearsed import Carried
from lab.attacks.scene import Loss, Scene


@dataclass(frozen=True, slots=True, kw_only=True)
class UniversalPerturbation:
    """Sign steps up the loss of all images together, for one change that fits them all.

    Moosavi-Dezfooli et al. 2017, arXiv:1610.08401; by batch gradients as Shafahi et al. 2020, arXiv:1811.11304; on
    diagnosis Hirano et al. 2021, BMC Medical Imaging 21:9. Called, it crafts the change on the images that it is
    given; `crafted` on the attacker's own, and `add` then carries it to others. Limits: images of one size alone.
    """

    name: ClassVar[str] = "universal"
    knowledge: ClassVar[Knowledge] = "training"

    eps: float
    """Budget, 8-bit grey levels of the window."""
    epochs: int = 10
    stride: float = 0.1
    """Length of a step, as a share of the budget."""
    loss: Loss = "margin"
    batch: int = 32
    seed: int = 0
    """Of the order of the images."""

    def __post_init__(self) -> None:
        if not (self.eps > 0 and self.epochs > 0 and self.stride > 0 and self.batch > 0) or math.isinf(self.eps):
            raise ValueError(f"eps, epochs, stride and batch must be above 0, and finite: {self}")

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Craft the change on (N, C, rows, columns) stored values and add it to them; see `Attack`."""
        return self.learnt(target, images, labels)(target, images, labels)

    def learnt(self, target: Target, images: Tensor, labels: Tensor) -> Carried:
        """Return the attack that adds the change crafted on these images to others."""
        change = self.crafted(target, images, labels)
        return lambda before, others, theirs: add(before, change, others, theirs, batch=self.batch)

    def crafted(self, target: Target, images: Tensor, labels: Tensor) -> Tensor:
        """Return the change (1, C, rows, columns) in stored values: whole numbers within the budget.

        Of the points after each epoch, the one that misleads most images is taken.
        """
        check(target, images, labels)
        draws = torch.Generator().manual_seed(self.seed)
        radius = target.budget(self.eps) / target.unit
        change = torch.zeros_like(images[:1])
        best, most = change, -1
        for _ in range(self.epochs):
            for chosen in torch.split(torch.randperm(len(images), generator=draws), self.batch):
                places = chosen.to(images.device)
                scene = Scene.of(target, images[places], labels[places], eps=self.eps, norm="linf")
                gradient, _, _ = scene.gradient(scene.clean + change, self.loss)
                uphill = gradient.sum(dim=0, keepdim=True).sign()
                change = (change + self.stride * radius * uphill).clamp(-radius, radius)
            whole = (change * target.unit).round()
            misled = int(add(target, whole, images, labels, batch=self.batch).success.sum())
            if misled > most:
                best, most = whole, misled
        return best


def add(target: Target, change: Tensor, images: Tensor, labels: Tensor, *, batch: int) -> Attacked:
    """Add one change (1, C, rows, columns) of stored values to every image, as far as values can be stored."""
    check(target, images, labels)
    return target.judged((images + change).clamp(target.low, target.high), labels, batch=batch)
