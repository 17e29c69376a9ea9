"""A generator that learns to mislead: one pass an image once it is trained, and no gradient of the model then."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.attacks.attack import Attacked, Target, check
from lab.attacks.method import Knowledge
from lab.attacks.rehearsed import Carried
from lab.attacks.scene import Scene, rising

CONTRAST = 2.0
"""Deviation of what the generator draws, in budgets, before it is bounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GAP:
    """A small generator of perturbations, each made for its image, all inside the ball.

    Poursaeed et al. 2018, arXiv:1712.02328; on diagnosis Xu et al. 2021, arXiv:2103.03438. Called, it trains on the
    images that it is given; `trained` on the attacker's own, and `add` then carries the generator to others (grey
    box). Limits: weaker than PGD at the same budget; what it emits looks alike from image to image.
    """

    name: ClassVar[str] = "gap"
    knowledge: ClassVar[Knowledge] = "training"

    eps: float
    """Budget, 8-bit grey levels of the window."""
    epochs: int = 60
    rate: float = 3e-3
    width: int = 16
    """Channels of the generator's first layer."""
    batch: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        whole = self.epochs > 0 and self.width > 0 and self.batch > 0
        if not (whole and self.eps > 0 and self.rate > 0) or math.isinf(self.eps):
            raise ValueError(f"eps, epochs, rate, width and batch must be above 0, and finite: {self}")

    def __call__(self, target: Target, images: Tensor, labels: Tensor) -> Attacked:
        """Train on (N, C, rows, columns) stored values, then attack them; see `Attack`."""
        return self.learnt(target, images, labels)(target, images, labels)

    def learnt(self, target: Target, images: Tensor, labels: Tensor) -> Carried:
        """Return the attack by a generator trained on these images."""
        generator = self.trained(target, images, labels)
        return lambda before, others, theirs: self.add(before, generator, others, theirs)

    def trained(self, target: Target, images: Tensor, labels: Tensor) -> Generator:
        """Return a generator that misleads the model on the attacker's own images."""
        check(target, images, labels)
        draws = torch.Generator().manual_seed(self.seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            generator = Generator(images.shape[1], self.width).to(images.device)
            judge = Judge(images.shape[1], self.width).to(images.device)
        optimiser = torch.optim.Adam(generator.parameters(), self.rate)
        other = torch.optim.Adam(judge.parameters(), self.rate)
        with torch.enable_grad():
            for _ in range(self.epochs):
                for chosen in torch.split(torch.randperm(len(images), generator=draws), self.batch):
                    places = chosen.to(images.device)
                    scene = Scene.of(target, images[places], labels[places], eps=self.eps, norm="linf")
                    made = generated(scene, generator)
                    lead = rising(scene, "margin", scene.logits(made))
                    loss = functional.softplus(-lead).mean() + self._unlikeness(judge, scene, made)
                    optimiser.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimiser.step()
                    self._judged(judge, other, scene, made.detach())
        return generator.eval().requires_grad_(requires_grad=False)

    def add(self, target: Target, generator: Generator, images: Tensor, labels: Tensor) -> Attacked:
        """Attack (N, C, rows, columns) stored values with a generator that is there."""
        check(target, images, labels)
        made = []
        for part, wanted in zip(torch.split(images, self.batch), torch.split(labels, self.batch), strict=True):
            scene = Scene.of(target, part, wanted, eps=self.eps, norm="linf")
            with torch.no_grad():
                made.append(scene.stored(generated(scene, generator)))
        return target.judged(torch.cat(made), labels, batch=self.batch)

    def _unlikeness(self, _judge: Judge, _scene: Scene, made: Tensor) -> Tensor:
        """Return what the generator pays for images that do not look like scans: nothing, here."""
        return made.new_zeros(())

    def _judged(self, _judge: Judge, _optimiser: torch.optim.Optimizer, _scene: Scene, _made: Tensor) -> None:
        """Let the judge learn: there is none, here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvGAN(GAP):
    """The same generator against a judge that learns to tell its images from scans.

    Xiao et al. 2018, arXiv:1801.02610. Limits: those of GAP; the judge is weaker than a detector that knows the model.
    """

    name: ClassVar[str] = "advgan"

    realism: float = 0.5
    """Weight of the judge's opinion beside the margin."""

    def _unlikeness(self, judge: Judge, _scene: Scene, made: Tensor) -> Tensor:
        opinion = judge(made)
        return self.realism * functional.binary_cross_entropy_with_logits(opinion, torch.ones_like(opinion))

    def _judged(self, judge: Judge, optimiser: torch.optim.Optimizer, scene: Scene, made: Tensor) -> None:
        true, false = judge(scene.clean), judge(made)
        loss = functional.softplus(-true).mean() + functional.softplus(false).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


class Generator(nn.Module):
    """From images, 0 to about 1, to shares of the budget, -1 to 1: down once, up once, and across.

    What it draws is standardised before it is bounded: else the first steps end where the bound has no gradient.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 3, padding=1), nn.ReLU())
        self.last = nn.Conv2d(3 * width, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, C, rows, columns) from the same."""
        fine = self.first(_standard(x))
        coarse = self.deep(self.down(fine))
        wide = functional.interpolate(coarse, fine.shape[2:], mode="bilinear", align_corners=False)
        shares: Tensor = self.last(torch.cat([fine, wide], dim=1))
        bounded: Tensor = torch.tanh(CONTRAST * _standard(shares))
        return bounded


def _standard(x: Tensor) -> Tensor:
    """Return images (N, C, rows, columns) of mean 0 and deviation 1."""
    mean, spread = x.mean(dim=(1, 2, 3), keepdim=True), x.std(dim=(1, 2, 3), keepdim=True)
    return (x - mean) / (spread + 1e-3)


class Judge(nn.Module):
    """Tells scans from what was made of them: (N, C, rows, columns) to (N, 1), above 0 for a scan."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.LeakyReLU(0.2),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return its opinion."""
        opinion: Tensor = self.layers(x)
        return opinion


def generated(scene: Scene, generator: Generator) -> Tensor:
    """Return points inside the ball; with a gradient for the generator."""
    shares: Tensor = generator(scene.clean)
    return (scene.clean + scene.radius * shares).clamp(0.0, scene.high)
