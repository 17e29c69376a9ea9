"""A small densely connected network, trained plainly: the architecture that most published chest X-ray models have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.hardening.method import Course, Method, Model, Pupil
from lab.learning import Batch

LAYERS = (4, 6, 6)
"""Of each block."""
SIDE_MIN = 16
"""Pixels: stem, pooling and transitions halve the image four times."""
BOTTLENECK = 4
"""Channels between a layer's two convolutions, in units of those that it adds."""


class DenselyConnected(nn.Module):
    """A stem, then blocks in which each layer reads all layers before it, then the mean of the image.

    Huang et al. 2017, arXiv:1608.06993, with bottlenecks, and transitions that halve channels and sides.
    """

    def __init__(self, channels: int, classes: int, growth: int) -> None:
        super().__init__()
        width = 2 * growth
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        parts: list[nn.Module] = [nn.MaxPool2d(3, 2, 1)]
        for place, count in enumerate(LAYERS):
            if place:
                parts.append(_transition(width, width // 2))
                width //= 2
            parts += [DenseLayer(width + growth * index, growth) for index in range(count)]
            width += growth * count
        self.blocks = nn.Sequential(*parts)
        self.norm, self.head = nn.BatchNorm2d(width), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) images to (N, classes) logits."""
        features = functional.relu(self.norm(self.blocks(self.stem(images))))
        return cast("Tensor", self.head(features.mean(dim=(2, 3))))


class DenseLayer(nn.Module):
    """A 1x1 and a 3x3 convolution, normalised before, put beside what they read."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.first_norm, self.second_norm = nn.BatchNorm2d(width), nn.BatchNorm2d(BOTTLENECK * growth)
        self.first = nn.Conv2d(width, BOTTLENECK * growth, 1, bias=False)
        self.second = nn.Conv2d(BOTTLENECK * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, H, W) to (N, width + growth, H, W)."""
        inner = self.first(functional.relu(self.first_norm(x)))
        return torch.cat([x, self.second(functional.relu(self.second_norm(inner)))], 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseNet(Method):
    """The labels, by a densely connected network, as CheXNet (Rajpurkar et al. 2017, arXiv:1711.05225) has one.

    An architecture and no defence, as `vit`: so that detectors are seen before more than one kind of network. Bortsova
    et al. 2021, arXiv:2006.06356, mislead DenseNet-121 on chest X-rays with FGSM and PGD.
    """

    name: ClassVar[str] = "densenet"
    paper: ClassVar[str] = "Huang et al. 2017, arXiv:1608.06993"
    broken_by: ClassVar[str] = "Bortsova et al. 2021, arXiv:2006.06356"
    limits: ClassVar[str] = "An architecture and no defence: misled as easily as any convolutional network."

    growth: int = 16
    """Channels that each layer adds."""

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the loss of the labels."""
        return pupil.loss(batch.images, batch.labels)

    def network(self, course: Course, _teacher: Model | None) -> nn.Module:
        """Return a densely connected network; raises ValueError for images that are too small for it."""
        channels, rows, columns = course.images.shape[1:]
        if min(rows, columns) < SIDE_MIN:
            raise ValueError(f"{rows} x {columns} pixels are fewer than {SIDE_MIN} x {SIDE_MIN}: {self}")
        return DenselyConnected(channels, course.classes, self.growth)


def _transition(width: int, out: int) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, out, 1, bias=False), nn.AvgPool2d(2))
