"""JPEG at full bit depth."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from detectors.observation import LEVEL

# ITU-T T.81 (1992), table K.1: the luminance quantisation that every JPEG library scales by its quality.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_TIE = 1e-3
"""In steps of the table, what a coefficient is lowered by before it is rounded. Of an 8-bit image many lie halfway
between two steps; without it, rounding errors would decide, which are others on every device and for every batch."""


class Jpeg:
    """The quantiser of JPEG, without its entropy coding and without rounding to 8 bits.

    Each channel is cut into 8 x 8 blocks, transformed by the cosine transform, rounded to the luminance table at the
    given quality, and transformed back, at the precision of the images. Backwards it is the identity
    (straight-through). Das et al. 2017, arXiv:1705.02900; broken by attacks that differentiate through it: Shin and
    Song 2017, "JPEG-resistant adversarial images".
    """

    surrogate = "identity"
    random = False

    def __init__(self, quality: int) -> None:
        assert 1 <= quality <= 100
        self.name = f"jpeg{quality}"
        scale = 5000 / quality if quality < 50 else 200 - 2 * quality
        table = torch.tensor(_LUMINANCE, dtype=torch.float32)
        self.table = torch.clamp(torch.floor((table * scale + 50) / 100), 1, 255)
        """(64,) steps of the coefficients, in row-major order of frequency."""
        self._forward = _cosines().T / self.table  # pixels of a block to coefficients in those steps, and back
        self._back = _cosines() * self.table[:, None]

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Quantise (N, C, H, W) images; the gradient passes unchanged."""
        with torch.no_grad():
            quantised = self._quantise(images)
        return images + (quantised - images).detach()

    def _quantise(self, images: Tensor) -> Tensor:
        rows, columns = images.shape[2:]
        levels = functional.pad(images / LEVEL - 128, (0, -columns % 8, 0, -rows % 8), mode="replicate")
        down, across = levels.shape[2] // 8, levels.shape[3] // 8
        blocks = levels.reshape(-1, down, 8, across, 8).transpose(2, 3).reshape(-1, 64)
        steps = torch.round(blocks @ self._forward.to(images) - _TIE)
        blocks = (steps @ self._back.to(images)).view(-1, down, across, 8, 8)
        levels = blocks.transpose(2, 3).reshape(levels.shape)[..., :rows, :columns]
        return torch.clamp((levels + 128) * LEVEL, 0, 1)


def _cosines() -> Tensor:
    """The 64 orthonormal cosine patterns of an 8 x 8 block, (64, 64) float64, in row-major order of frequency."""
    places = torch.arange(8, dtype=torch.float64)
    one = torch.cos(math.pi * places[:, None] * (2 * places[None, :] + 1) / 16) / 2
    one[0] /= math.sqrt(2)
    return torch.einsum("ui,vj->uvij", one, one).reshape(64, 64)
