"""JPEG at full bit depth, in grey and in colour."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from detectors.observation import LEVEL

# ITU-T T.81 (1992), tables K.1 and K.2: the quantisation that every JPEG library scales by its quality.
_LUMINANCE = (
    16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
    14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
    49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
)  # fmt: skip
_CHROMINANCE = (
    17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
    47, 66, *38 * (99,),
)  # fmt: skip
# ITU-T T.871 (2011), section 7: brightness, blueness and redness from red, green and blue.
_FROM_RGB = (
    (0.299, 0.587, 0.114),
    (-0.299 / 1.772, -0.587 / 1.772, 0.5),
    (0.5, -0.587 / 1.402, -0.114 / 1.402),
)
_TIE = 1e-3
"""In steps of the table, what a coefficient is lowered by before it is rounded. Of an 8-bit image many lie halfway
between two steps; without it, rounding errors would decide, which are others on every device and for every batch."""


class Jpeg:
    """The quantiser of JPEG, without its entropy coding and without rounding to 8 bits.

    The image is cut into 8 x 8 blocks, transformed by the cosine transform, rounded to the table at the given quality,
    and transformed back, at the precision of the images. Colour is first taken apart into brightness and two
    differences, which have half the resolution (4:2:0) and a coarser table, as photographs are stored. Backwards it is
    the identity (straight-through). Das et al. 2017, arXiv:1705.02900; broken by attacks that differentiate through
    it: Shin and Song 2017, "JPEG-resistant adversarial images".
    """

    surrogate = "identity"
    random = False

    def __init__(self, quality: int) -> None:
        assert 1 <= quality <= 100
        self.name = f"jpeg{quality}"
        self.table = _scaled(_LUMINANCE, quality)
        """(64,) steps of the coefficients of grey, in row-major order of frequency."""
        self._luminance, self._chrominance = (_both_ways(_scaled(each, quality)) for each in (_LUMINANCE, _CHROMINANCE))
        self._from_rgb = torch.tensor(_FROM_RGB, dtype=torch.float64)
        self._to_rgb = torch.linalg.inv(self._from_rgb)

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Quantise (N, 1 or 3, H, W) images; the gradient passes unchanged."""
        with torch.no_grad():
            levels = images / LEVEL
            levels = self._grey(levels) if images.shape[1] == 1 else self._colour(levels)
            quantised = torch.clamp(levels * LEVEL, 0, 1)
        return images + (quantised - images).detach()

    def _grey(self, levels: Tensor) -> Tensor:
        return self._quantised(levels - 128, self._luminance) + 128

    def _colour(self, levels: Tensor) -> Tensor:
        rows, columns = levels.shape[2:]
        even = functional.pad(levels, (0, columns % 2, 0, rows % 2), mode="replicate")
        apart = torch.einsum("dc,nchw->ndhw", self._from_rgb.to(levels), even)
        brightness = self._grey(apart[:, :1])
        halved = self._quantised(functional.avg_pool2d(apart[:, 1:], 2), self._chrominance)
        whole = functional.interpolate(halved, scale_factor=2, mode="bilinear", align_corners=False)
        together = torch.einsum("dc,nchw->ndhw", self._to_rgb.to(levels), torch.cat([brightness, whole], 1))
        return together[..., :rows, :columns]

    @staticmethod
    def _quantised(planes: Tensor, ways: tuple[Tensor, Tensor]) -> Tensor:
        """(N, C, H, W) planes, each by itself, with the coefficients of their blocks rounded to steps of a table."""
        rows, columns = planes.shape[2:]
        levels = functional.pad(planes, (0, -columns % 8, 0, -rows % 8), mode="replicate")
        down, across = levels.shape[2] // 8, levels.shape[3] // 8
        blocks = levels.reshape(-1, down, 8, across, 8).transpose(2, 3).reshape(-1, 64)
        forward, back = (way.to(planes) for way in ways)
        blocks = (torch.round(blocks @ forward - _TIE) @ back).view(-1, down, across, 8, 8)
        return blocks.transpose(2, 3).reshape(levels.shape)[..., :rows, :columns]


def _scaled(steps: tuple[int, ...], quality: int) -> Tensor:
    """(64,): a table of the standard, scaled by the quality as the reference library does."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return torch.clamp(torch.floor((torch.tensor(steps, dtype=torch.float32) * scale + 50) / 100), 1, 255)


def _both_ways(table: Tensor) -> tuple[Tensor, Tensor]:
    """(64, 64) each: from the pixels of a block to its coefficients in steps of the table, and back."""
    return _cosines().T / table, _cosines() * table[:, None]


def _cosines() -> Tensor:
    """The 64 orthonormal cosine patterns of an 8 x 8 block, (64, 64) float64, in row-major order of frequency."""
    places = torch.arange(8, dtype=torch.float64)
    one = torch.cos(math.pi * places[:, None] * (2 * places[None, :] + 1) / 16) / 2
    one[0] /= math.sqrt(2)
    return torch.einsum("ui,vj->uvij", one, one).reshape(64, 64)
