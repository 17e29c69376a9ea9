"""What a method of attack sees: a batch in units of the window, the ball it may search, the model's answers there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from detectors.models.outputs import leads
from detectors.perturb import Norm, length, project, step
from lab.attacks.attack import Target
from lab.attacks.tasks import Multiclass

Loss = Literal["margin", "ce", "dlr"]
"""What is climbed: the margin of a wrong answer, the training loss, or the difference of logits ratio."""

_NOTHING = 1e-12


class Found(NamedTuple):
    """What a search found."""

    images: Tensor
    """(N, C, rows, columns) float32 in units of the window, storable and within the budget."""
    margin: Tensor
    """(N,) float32 of these very images."""
    curve: Tensor | None = None
    """(steps + 1,) int64: how many of them had succeeded after so many steps; None from a search that does not tell."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A batch of images before the attacker, in units of the window: 1/255 is a grey level, 0 the least storable value.

    The model is only ever asked about storable images: a point is rounded, and the gradient passes straight through.
    So a margin is that of the file, and an image that is done is done.
    """

    target: Target
    clean: Tensor
    """(N, C, rows, columns) float32, storable."""
    labels: Tensor
    """As the target's task has them."""
    radius: float
    """Of the ball, in units of the window; infinite where there is none."""
    norm: Norm
    index: Tensor
    """(N,) int64: the place of each image in the batch; images that are done leave."""
    goals: Tensor | None = None
    """(N,) int64: the class to be answered."""
    strict: bool = False
    """Only the goal counts; else any wrong answer does."""
    limits: tuple[Tensor, Tensor] | None = None
    """Least and greatest whole number that each pixel may be stored as, above the least storable value and shaped like
    the images; None where no bound holds for every pixel by itself but the range."""

    @classmethod
    def of(cls, target: Target, images: Tensor, labels: Tensor, *, eps: float, norm: Norm) -> Self:
        """Return the scene of (N, C, rows, columns) stored values.

        Args:
            target: the model and the way to it.
            images: the stored values.
            labels: theirs.
            eps: radius in grey levels: of every value for L-infinity, as the root of the mean square for L2.
            norm: of the ball.

        Raises:
            ValueError: no storable image but the clean one lies in the ball.
        """
        radius = target.budget(eps)
        if norm == "l2":
            radius = eps * target.level * math.sqrt(images[0].numel())
        above = images - target.low
        limits = None
        if norm == "linf" and math.isfinite(radius):
            reach, whole = math.floor(radius + 1e-3), above.round()
            limits = (whole - reach).clamp_(min=0), (whole + reach).clamp_(max=target.high - target.low)
        index = torch.arange(len(images), device=images.device)
        return cls(target, above / target.unit, labels, radius / target.unit, norm, index, limits=limits)

    @property
    def high(self) -> float:
        """The greatest storable value; the least is 0."""
        return (self.target.high - self.target.low) / self.target.unit

    def only(self, chosen: Tensor) -> Scene:
        """Return the scene of those chosen, a mask or places (N,)."""
        return replace(
            self,
            clean=self.clean[chosen],
            labels=self.labels[chosen],
            index=self.index[chosen],
            goals=None if self.goals is None else self.goals[chosen],
            limits=None if self.limits is None else (self.limits[0][chosen], self.limits[1][chosen]),
        )

    def unbound(self) -> Scene:
        """Return the scene in which the range alone bounds a change."""
        return replace(self, radius=math.inf, limits=None)

    def between(self, least: Tensor, most: Tensor) -> Scene:
        """Return the scene in which pixels also lie between these, in units of the window, shaped like the images."""
        lowest, highest = torch.ceil(least * self.target.unit - 1e-3), torch.floor(most * self.target.unit + 1e-3)
        if self.limits is not None:
            lowest, highest = torch.maximum(lowest, self.limits[0]), torch.minimum(highest, self.limits[1])
        return replace(self, limits=(lowest.clamp_(min=0), highest.clamp_(max=self.target.high - self.target.low)))

    def aiming(self, goal: int) -> Scene:
        """Return the scene in which only one class counts."""
        return replace(self, goals=torch.full_like(self.index, goal), strict=True)

    def aiming_at_rank(self, rank: int) -> Scene:
        """Return the scene aimed at each image's (rank + 1)-th likeliest wrong class; any wrong answer still counts."""
        with torch.no_grad():
            logits = self.logits(self.clean)
        order = logits.scatter(1, self.labels[:, None], -torch.inf).argsort(dim=1, descending=True)
        return replace(self, goals=order[:, rank % (logits.shape[1] - 1)])

    def logits(self, x: Tensor) -> Tensor:
        """Return what the model says of points (N, C, rows, columns) as they would be stored; with a gradient."""
        return self.target.logits(self.shown(x))

    def shown(self, x: Tensor) -> Tensor:
        """Return `stored`, with the gradient of points as they are."""
        if not x.requires_grad:
            return self.stored(x)
        values = self.target.low + x * self.target.unit
        return values + (self.stored(x) - values).detach()

    def stored(self, x: Tensor) -> Tensor:
        """Return the stored values nearest to points, within range and ball: whole numbers."""
        with torch.no_grad():
            unit = self.target.unit
            whole = (x * unit).round_()
            if self.limits is None:
                whole = whole.clamp_(0, self.target.high - self.target.low)
            if self.norm == "l2" and math.isfinite(self.radius):
                clean = (self.clean * unit).round_()
                whole = clean + rounded_within(x * unit - clean, whole - clean, self.radius * unit)
            if self.limits is not None:
                whole = whole.clamp_(*self.limits)
            return whole.add_(self.target.low)

    def whole(self, x: Tensor) -> Tensor:
        """Return the storable points nearest to points, in units of the window."""
        return (self.stored(x) - self.target.low) / self.target.unit

    def judge(self, logits: Tensor) -> Tensor:
        """Return (N,): below 0 where the attacker has what he wants."""
        if self.strict and self.goals is not None:
            return -leads(logits, self.goals)
        return self.target.task.margin(logits, self.labels)

    def margin(self, x: Tensor) -> Tensor:
        """Return (N,), the margin at points as stored; no gradient."""
        with torch.no_grad():
            return self.judge(self.logits(x))

    def gradient(self, x: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient of `loss` at points, shaped like them, and loss and margin (N,) at the same points."""
        gradient, logits, climbed = self.uphill(x, lambda logits: rising(self, loss, logits))
        return gradient, climbed, self.judge(logits)

    def uphill(self, x: Tensor, climb: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient of a function of the logits, the logits, and its values (N,); the last two detached."""
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            logits = self.logits(leaf)
            climbed = climb(logits)
            (gradient,) = torch.autograd.grad(climbed.sum(), leaf)
        return gradient, logits.detach(), climbed.detach()

    def step(self, x: Tensor, gradient: Tensor, size: float | Tensor) -> Tensor:
        """Return the points one step of a length on, back in ball and range."""
        return step(
            x, gradient, self.clean, size=size, eps=self.radius, low=0.0, high=self.high, norm=self.norm
        )  # fmt: skip

    def inside(self, x: Tensor) -> Tensor:
        """Return the nearest points of ball and range."""
        if math.isinf(self.radius):
            return x.clamp(0.0, self.high)
        return project(x, self.clean, eps=self.radius, low=0.0, high=self.high, norm=self.norm)

    def anywhere(self, draws: torch.Generator) -> Tensor:
        """Return points drawn from the ball."""
        if self.norm == "linf":
            noise = torch.rand(self.clean.shape, generator=draws, device=self.clean.device)
            return self.inside(self.clean + (2 * noise - 1) * self.radius)
        noise = torch.randn(self.clean.shape, generator=draws, device=self.clean.device)
        share = torch.rand(len(noise), 1, 1, 1, generator=draws, device=noise.device)
        return self.inside(self.clean + self.radius * share * noise / length(noise))

    def distance(self, x: Tensor) -> Tensor:
        """Return (N,): how far points are from the clean images, in the scene's norm."""
        away = (x - self.clean).flatten(1)
        return away.abs().amax(dim=1) if self.norm == "linf" else away.norm(dim=1)


class Best:
    """The best storable point of each image so far, whether or not the image is still in the batch."""

    def __init__(self, scene: Scene) -> None:
        self.images = scene.clean.clone()
        self.margin = torch.full((len(scene.clean),), torch.inf, device=scene.clean.device)

    def keep(self, scene: Scene, x: Tensor, margin: Tensor) -> None:
        """Take the points whose margin (N,) is less than any before."""
        better = margin < self.margin[scene.index]
        places = scene.index[better]
        self.images[places] = scene.only(better).whole(x[better])
        self.margin[places] = margin[better]

    def found(self) -> Found:
        """What there is in the end."""
        return Found(self.images, self.margin)


def rising(scene: Scene, loss: Loss, logits: Tensor) -> Tensor:
    """Return (N,): what an attack makes large.

    `dlr` is the difference of logits ratio (Croce and Hein 2020, arXiv:2003.01690), which no scaling of the logits
    can flatten; with too few classes for it, and in every task but multiclass, it is the margin.
    """
    task, labels, goals = scene.target.task, scene.labels, scene.goals
    if loss == "ce":
        return task.loss(logits, labels) if goals is None else -task.loss(logits, goals)
    if goals is None:
        lead = -task.margin(logits, labels)
    elif loss == "margin" and scene.strict:
        lead = leads(logits, goals)
    else:
        lead = (logits.gather(1, goals[:, None]) - logits.gather(1, labels[:, None]))[:, 0]
    least = 3 if goals is None else 4
    if loss == "margin" or not isinstance(task, Multiclass) or logits.shape[1] < least:
        return lead
    first = logits.topk(least, dim=1).values
    return lead / (first[:, 0] - first[:, 2:].mean(dim=1) + _NOTHING)


def rounded_within(change: Tensor, rounded: Tensor, radius: float) -> Tensor:
    """Round changes (N, C, rows, columns) to whole numbers no longer, together, than `radius`.

    Where plain rounding is too long, as many values as fit are rounded away from 0, the nearest to it first; the
    rest are cut. Cutting alone never lengthens, so the result is always within the radius.
    """
    over = rounded.flatten(1).norm(dim=1) > radius
    if not bool(over.any()):
        return rounded
    size = change[over].flatten(1).abs().double()
    cut = size.floor()
    part, order = (size - cut).sort(dim=1, descending=True)
    price = torch.where(part >= 0.5, 2 * cut.gather(1, order) + 1, torch.inf)  # (cut + 1)^2 - cut^2
    left = radius**2 - cut.square().sum(dim=1, keepdim=True)
    up = (price.cumsum(dim=1) <= left).to(cut.dtype)
    cut.scatter_add_(1, order, up)
    kept = rounded.clone()
    kept[over] = (cut * change[over].flatten(1).sign()).view_as(change[over]).to(change.dtype)
    return kept
