"""Changes that happen to honest scans, at which a detector that decides must stay calm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.filters import gaussian
from detectors.neighbours.jpeg import Jpeg


@dataclass(frozen=True, slots=True)
class Benign:
    """A change of 8-bit stored values (N, C, rows, columns), given a size in grey levels and a seed."""

    change: Callable[[Tensor, float, int], Tensor]
    sized: bool
    """Whether it has a size: noise as large as an attack, which must not be what tells an attack."""

    def __call__(self, images: Tensor, level: float, seed: int) -> Tensor:
        """Change stored values; the caller rounds and clips."""
        return self.change(images, level, seed)


def _drawn(images: Tensor, seed: int) -> Tensor:
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))


BENIGN = {
    "saved again": Benign(lambda images, _level, _seed: images, sized=False),
    "JPEG 90": Benign(lambda images, _level, _seed: Jpeg(90)(images / 255) * 255, sized=False),
    "blur 0.5": Benign(lambda images, _level, _seed: gaussian(images, 0.5), sized=False),
    "gain +5 %": Benign(lambda images, _level, _seed: images * 1.05, sized=False),
    "sign noise": Benign(lambda images, level, seed: images + level * _drawn(images, seed).sign(), sized=True),
    "Gaussian noise": Benign(lambda images, level, seed: images + level * _drawn(images, seed), sized=True),
}
"""By name, as a report lists them."""
