"""Wavelet shrinkage: coefficients that are no larger than the noise go, the others shrink by as much.

Chang, Yu and Vetterli 2000, doi:10.1109/83.862633 (BayesShrink: a threshold for each band from its own variance), with
the noise taken from the finest diagonal band (Donoho and Johnstone 1994); against attacks Prakash et al. 2018,
arXiv:1801.08926, which Athalye and Carlini 2018, arXiv:1804.03286, break by differentiating through it. Limits: an
attack that is sparse in wavelets, or of low frequency, stays.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from detectors.denoisers.windowed import Windowed

# Daubechies 1992, "Ten lectures on wavelets", table 6.1: eight taps, four vanishing moments, orthonormal.
_TAPS = (
    0.23037781330885523, 0.7148465705525415, 0.6308807679295904, -0.02798376941698385,
    -0.18703481171888114, 0.030841381835986965, 0.032883011666982945, -0.010597401784997278,
)  # fmt: skip
_NORMAL_QUARTILE = 0.6744897501960817
"""Of the absolute value of a standard normal: its median, with which a median becomes a deviation."""


@dataclass(frozen=True)
class Wavelet(Windowed):
    """BayesShrink on the orthogonal wavelet of Daubechies with eight taps; borders are mirrored."""

    levels: int = 3

    name = "wavelet"

    def restore(self, unit: Tensor) -> Tensor:
        """Shrink (N, C, H, W) images, each channel of each by its own noise."""
        smooth = unit.reshape(-1, 1, *unit.shape[2:])
        pyramid = []
        for _ in range(self.levels):
            shape = smooth.shape[2:]
            bands = analyse(smooth)  # (N C, 4, h, w)
            pyramid.append((bands[:, 1:], shape))
            smooth = bands[:, :1]
        noise = _noise(pyramid[0][0][:, 2])
        for details, (rows, columns) in reversed(pyramid):
            smooth = synthesise(torch.cat([smooth, _shrunk(details, noise)], 1), rows, columns)
        return smooth.reshape(unit.shape)


def analyse(images: Tensor) -> Tensor:
    """One level of the transform.

    Args:
        images: (N, 1, H, W).

    Returns:
        (N, 4, h, w): smooth, then detail across, down and both ways; half the size and a margin.
    """
    taps = _bank(images)
    down = functional.conv2d(_mirrored(images, 2), taps.view(2, 1, -1, 1), stride=(2, 1))
    return functional.conv2d(_mirrored(down, 3), taps.repeat(2, 1).view(4, 1, 1, -1), stride=(1, 2), groups=2)


def synthesise(bands: Tensor, rows: int, columns: int) -> Tensor:
    """The images (N, 1, rows, columns) that `analyse` took apart."""
    taps, margin = _bank(bands), len(_TAPS) - 2
    across = functional.conv_transpose2d(bands, taps.repeat(2, 1).view(4, 1, 1, -1), stride=(1, 2), groups=2)
    down = across[..., margin : margin + columns]
    images = functional.conv_transpose2d(down, taps.view(2, 1, -1, 1), stride=(2, 1))
    return images[..., margin : margin + rows, :]


def _bank(like: Tensor) -> Tensor:
    """The low-pass and, its quadrature mirror, the high-pass: (2, taps)."""
    low = like.new_tensor(_TAPS)
    signs = like.new_tensor([(-1.0) ** k for k in range(len(_TAPS))])
    return torch.stack([low, signs * low.flip(0)])


def _mirrored(images: Tensor, axis: int) -> Tensor:
    """Images continued by their mirror image along an axis, as far as the filters reach; of any length."""
    length, taps = images.shape[axis], len(_TAPS)
    outputs = (length + taps - 1) // 2
    places = torch.arange(2 - taps, 2 * outputs, device=images.device) % (2 * length)
    return images.index_select(axis, torch.minimum(places, 2 * length - 1 - places))


def _noise(finest: Tensor) -> Tensor:
    """(N, 1, 1, 1) standard deviation of the noise, from the finest diagonal band (N, h, w) without exact zeros."""
    sizes = finest.abs().flatten(1)
    median = torch.where(sizes > 0, sizes, torch.nan).nanmedian(1).values
    return (median.nan_to_num(0) / _NORMAL_QUARTILE).view(-1, 1, 1, 1)


def _shrunk(details: Tensor, noise: Tensor) -> Tensor:
    """Bands (N, 3, h, w), each moved towards zero by noise^2 / deviation of what is no noise."""
    signal = (details.square().mean((2, 3), keepdim=True) - noise.square()).clamp_min(torch.finfo(details.dtype).eps)
    threshold = noise.square() / signal.sqrt()
    return details - details.clamp(-threshold, threshold)
