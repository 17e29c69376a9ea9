"""A network of sign activations: a voter that an attack on another network seldom carries along."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.hardening.method import RECIPE, Course, Method, Model, Pupil
from lab.learning import Batch, Recipe


class Sign(nn.Module):
    """-1 or 1; the gradient passes straight through where the input is between them (Bengio et al. 2013)."""

    def __init__(self) -> None:
        super().__init__()
        self.straight = True
        """Lend a gradient: for training, and for the attacker. What is served has none."""

    def forward(self, x: Tensor) -> Tensor:
        """The sign of each value."""
        if not self.straight:
            return torch.sign(x)
        near = functional.hardtanh(x)
        return near + (torch.sign(x) - near).detach()


class SignNetwork(nn.Module):
    """A stem of stride 2, then one convolution a stage, each normalised and cut to its sign; then the mean."""

    def __init__(self, recipe: Recipe, channels: int, classes: int) -> None:
        super().__init__()
        width = recipe.widths[0]
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), Sign()]
        for out, count, stride in zip(recipe.widths, recipe.blocks, recipe.strides, strict=True):
            for index in range(count):
                convolution = nn.Conv2d(width, out, 3, stride if index == 0 else 1, 1, bias=False)
                layers += [convolution, nn.BatchNorm2d(out), Sign()]
                width = out
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) images to (N, classes) logits."""
        return cast("Tensor", self.head(self.layers(images).mean(dim=(2, 3))))


@dataclass(frozen=True, slots=True, kw_only=True)
class SignActivation(Method):
    """The labels, by a network whose activations are signs.

    Yang et al. 2022, IJPRAI 36(3), 2254005. They search the weights without gradients, coordinate by
    coordinate; here a gradient passes straight through each sign (Bengio et al. 2013, arXiv:1308.3432), so that one
    loop trains all methods. Attacks on other networks carry over less. Limits: a sign hides the gradient, and an
    attacker lends himself one as training does (Athalye et al. 2018, arXiv:1802.00420): never more than a voter that
    disagrees, beside the model.
    """

    name: ClassVar[str] = "sign"
    paper: ClassVar[str] = "Yang et al. 2022, IJPRAI 36(3), 2254005"
    broken_by: ClassVar[str] = "Athalye et al. 2018, arXiv:1802.00420 (a gradient passed straight through)"
    limits: ClassVar[str] = "No defence by itself: a voter beside the model, for attacks that do not know of it."
    recipe: ClassVar[Recipe] = replace(RECIPE, averaging=0.0)
    """No running mean: statistics of signs do not average."""

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the loss of the labels."""
        return pupil.loss(batch.images, batch.labels)

    def network(self, course: Course, _teacher: Model | None) -> nn.Module:
        """Return a network of signs."""
        return SignNetwork(course.recipe, course.images.shape[1], course.classes)

    def served(self, network: nn.Module) -> nn.Module:
        """Return it without the lent gradient."""
        for part in network.modules():
            if isinstance(part, Sign):
                part.straight = False
        return network.requires_grad_(requires_grad=False)
