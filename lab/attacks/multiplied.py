"""Changes that multiply the signal, as acquisition does: a bias field, and speckle, adversarial or not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from lab.attacks.adam import Adam
from lab.attacks.attack import Target
from lab.attacks.method import Knowledge, Method
from lab.attacks.scene import Best, Found, Loss, Scene, rising


@dataclass(frozen=True, slots=True, kw_only=True)
class BiasField(Method):
    """A smooth multiplicative field, polynomial plus coarse grid, that looks like uneven exposure.

    Tian et al. 2020, arXiv:2009.09247. The signal, counted from black, is multiplied by exp(B), and B is kept within
    the logarithm of `gain` by a hyperbolic tangent. Outside every Lp ball and unseen by denoisers; an estimate of the
    field as MRI correction makes it sees it. Limits: black stays black, so an empty background hides nothing.
    """

    name: ClassVar[str] = "bias-field"
    knowledge: ClassVar[Knowledge] = "gradients"
    bounded: ClassVar[bool] = False
    free: ClassVar[frozenset[str]] = frozenset({"smoothness"})

    eps: float = math.inf
    gain: float = 1.2
    """Largest factor, and its inverse the least."""
    degree: int = 3
    """Of the polynomial, in rows and columns together."""
    grid: int = 8
    """Points of the coarse grid, a side."""
    steps: int = 60
    rate: float = 0.1
    smoothness: float = 10.0
    """Weight of the field's mean squared slope, in margins: its slope is in logarithms from one side to the other."""
    confidence: float = math.inf
    """An image leaves the batch when it is misread by more."""

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if not self.gain > 1:
            raise ValueError(f"gain must be above 1: {self}")

    def _search(self, scene: Scene, _start: int, _draws: torch.Generator) -> Found:
        best = Best(scene)
        terms = _polynomials(self.degree, scene.clean)  # (terms, rows, columns)
        count = len(terms) + self.grid**2
        weights = torch.zeros(len(scene.clean), count, device=scene.clean.device)
        adam = Adam.of(weights)
        for _ in range(self.steps):
            leaf = weights.detach().requires_grad_(True)
            with torch.enable_grad():
                field = self._field(leaf, terms)
                logits = scene.logits(lit(scene, field.exp()))
                loss = self.smoothness * _roughness(field) - rising(scene, "margin", logits)
                (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            margin = scene.judge(logits.detach())
            best.keep(scene, lit(scene, field.detach().exp()), margin)
            adam, down = adam.after(gradient)
            weights = weights - self.rate * down
            going = margin >= -self.confidence
            if not bool(going.all()):
                scene, weights, adam = scene.only(going), weights[going], adam.only(going)
                if not len(weights):
                    return best.found()
        x = lit(scene, self._field(weights, terms).exp())
        best.keep(scene, x, scene.margin(x))
        return best.found()

    def _field(self, weights: Tensor, terms: Tensor) -> Tensor:
        """Return (N, 1, rows, columns), the logarithm of the factor, from (N, weights)."""
        smooth = torch.einsum("nt,trc->nrc", weights[:, : len(terms)], terms).unsqueeze(1)
        coarse = weights[:, len(terms) :].view(-1, 1, self.grid, self.grid)
        wide = functional.interpolate(coarse, terms.shape[1:], mode="bicubic", align_corners=True)
        return math.log(self.gain) * torch.tanh(smooth + wide)

    def _scene(self, target: Target, images: Tensor, labels: Tensor, _start: int) -> Scene:
        scene = Scene.of(target, images, labels, eps=self.eps, norm="linf")
        return _between(scene, 1 / self.gain, self.gain)


@dataclass(frozen=True, slots=True, kw_only=True)
class Speckle(Method):
    """Random multiplicative noise: no attack but its control, which a detector of attacks must not mind.

    Lal et al. 2021, Sensors 21(11), 3922: signal times one plus Gaussian noise; here cut at three deviations, so that
    it has a bound.
    """

    name: ClassVar[str] = "speckle"
    knowledge: ClassVar[Knowledge] = "none"
    bounded: ClassVar[bool] = False

    eps: float = math.inf
    strength: float = 0.1
    """Largest share of the signal that is added or taken: three standard deviations."""

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        noise = torch.randn(scene.clean.shape, generator=draws, device=scene.clean.device)
        x = scene.whole(lit(scene, 1 + self.strength * (noise / 3).clamp(-1.0, 1.0)))
        return Found(x, scene.margin(x))

    def _scene(self, target: Target, images: Tensor, labels: Tensor, _start: int) -> Scene:
        scene = Scene.of(target, images, labels, eps=self.eps, norm="linf")
        return _between(scene, 1 - self.strength, 1 + self.strength)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdversarialSpeckle(Speckle):
    """Multiplicative noise that follows the gradient: bright structures move most, black not at all.

    After Lal et al. 2021, Sensors 21(11), 3922, whose noise is random. Limits: those of PGD.
    """

    name: ClassVar[str] = "adversarial-speckle"
    knowledge: ClassVar[Knowledge] = "gradients"

    steps: int = 20
    stride: float = 0.15
    """Length of a step, as a share of the strength."""
    loss: Loss = "margin"

    def _search(self, scene: Scene, _start: int, draws: torch.Generator) -> Found:
        best = Best(scene)
        noise = 2 * torch.rand(scene.clean.shape, generator=draws, device=scene.clean.device) - 1
        signal = lit(scene, torch.full_like(noise, 2.0)) - scene.clean
        for _ in range(self.steps):
            x = lit(scene, 1 + self.strength * noise)
            gradient, _, margin = scene.gradient(x, self.loss)
            best.keep(scene, x, margin)
            noise = (noise + self.stride * (gradient * signal).sign()).clamp(-1.0, 1.0)
        x = lit(scene, 1 + self.strength * noise)
        best.keep(scene, x, scene.margin(x))
        return best.found()


def lit(scene: Scene, factor: Tensor) -> Tensor:
    """Return points whose signal, counted from black, is multiplied; what lies below black stays."""
    black = (scene.target.black - scene.target.low) / scene.target.unit
    return scene.clean + (scene.clean - black).clamp_min(0) * (factor - 1)


def _between(scene: Scene, least: float, most: float) -> Scene:
    """Return the scene in which the signal may be multiplied by a factor between two."""
    darkest, brightest = (lit(scene, torch.full_like(scene.clean, factor)) for factor in (least, most))
    return scene.between(darkest, brightest)


def _roughness(field: Tensor) -> Tensor:
    """Return (N,), the mean squared slope, down and across, by the side of the image."""
    down, across = (field.diff(dim=axis).mul(field.shape[axis]).square().mean(dim=(1, 2, 3)) for axis in (2, 3))
    return down + across


def _polynomials(degree: int, images: Tensor) -> Tensor:
    """Return (terms, rows, columns): products of powers of the place, -1 to 1, of at most a degree in all."""
    rows, columns = (torch.linspace(-1, 1, side, device=images.device) for side in images.shape[2:])
    powers = [(i, j) for i in range(degree + 1) for j in range(degree + 1 - i)]
    return torch.stack([rows[:, None] ** i * columns[None, :] ** j for i, j in powers])
