"""Projected gradient descent: the standard attack of one who knows the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from detectors.perturb import step
from lab.attacks.attack import Attacked, Target, check, margins

Loss = Literal["margin", "ce"]


@dataclass(frozen=True, slots=True)
class PGD:
    """Sign steps up the loss from random points of the L-infinity ball, projected back after each.

    Madry et al. 2018, arXiv:1706.06083. Limits: it knows nothing of a detector, so what it shows is the undefended
    model; against a detector only an attack on both says anything (Carlini and Wagner 2017, arXiv:1705.07263).
    """

    name: ClassVar[str] = "pgd"

    eps: float
    """Budget, 8-bit grey levels of the window."""
    steps: int = 20
    restarts: int = 1
    """Starts; an image that is already misread is not attacked again."""
    stride: float = 0.15
    """Length of a step, as a share of the budget."""
    loss: Loss = "margin"
    """What is climbed: the margin of the wrong answer, or cross-entropy."""
    seed: int = 0
    """Of the random starts."""
    batch: int = 32
    """Images attacked at once; bounds the memory and changes nothing else but the starts."""

    def __post_init__(self) -> None:
        if not (self.eps > 0 and self.steps > 0 and self.restarts > 0 and self.stride > 0 and self.batch > 0):
            raise ValueError(f"eps, steps, restarts, stride and batch must be above 0: {self}")
        if self.loss not in ("margin", "ce"):
            raise ValueError(f"loss must be margin or ce, got {self.loss!r}")

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Attack (N, 1, rows, columns) stored values; see `Attack`."""
        check(images, labels)
        budget = target.budget(self.eps)
        draws = torch.Generator().manual_seed(self.seed)
        best = target.judged(images, labels, batch=self.batch)
        for _ in range(self.restarts):
            for chosen in torch.split(torch.nonzero(~best.success)[:, 0], self.batch):
                climbed = self._climb(target, images[chosen], labels[chosen], budget, draws)
                found = target.judged(climbed, labels[chosen], batch=self.batch)
                better = found.margin < best.margin[chosen]
                best.images[chosen[better]] = found.images[better]
                best.margin[chosen[better]] = found.margin[better]
                best.success[chosen[better]] = found.success[better]

        assert bool(((best.images - images).abs() <= budget).all())
        return best

    def _climb(self, target: Target, images: Tensor, labels: Tensor, budget: float, draws: torch.Generator) -> Tensor:
        """Return the point with the least margin that one start comes through."""
        noise = torch.rand(images.shape, generator=draws, dtype=images.dtype)
        current = torch.clamp(images + (2 * noise - 1) * budget, target.low, target.high)
        best, least = images.clone(), torch.full((len(images),), torch.inf)
        for _ in range(self.steps):
            gradient, margin = self._gradient(target, current, labels)
            best, least = _keep(best, least, current, margin)
            current = step(
                current, gradient, images, size=self.stride * budget, eps=budget, low=target.low, high=target.high
            )
        with torch.no_grad():
            margin = margins(target.logits(current), labels)
        return _keep(best, least, current, margin)[0]

    def _gradient(self, target: Target, current: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient of the loss, shaped like the images, and the margin (N,) at the same point."""
        leaf = current.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = target.logits(leaf)
            margin = margins(logits, labels)
            rising = -margin if self.loss == "margin" else functional.cross_entropy(logits, labels, reduction="none")
            (gradient,) = torch.autograd.grad(rising.sum(), leaf)
        return gradient, margin.detach()


def _keep(best: Tensor, least: Tensor, current: Tensor, margin: Tensor) -> tuple[Tensor, Tensor]:
    """Return, image by image, the better of two points and its margin."""
    better = margin < least
    return torch.where(better[:, None, None, None], current, best), torch.where(better, margin, least)
