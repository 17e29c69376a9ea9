"""A U-Net that subtracts the noise it sees: coarse levels tell it what is structure.

Ronneberger et al. 2015, arXiv:1505.04597; as a denoiser against attacks Liao et al. 2018, arXiv:1712.02976. Limits: as
of every network, an attacker who differentiates through it defeats it (Athalye and Carlini 2018, arXiv:1804.03286).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.denoisers.dncnn import silent, with_detail
from detectors.denoisers.learned import Learned
from detectors.models.folding import lay_out
from detectors.observation import LEVEL

WIDTH = 16
_CELL = 8
"""Pixels along the side of what the coarsest level sees as one."""


class UNetDenoiser(Learned):
    """Subtracts the noise that a U-Net sees."""

    name = "unet"

    @staticmethod
    def network(channels: int) -> nn.Module:
        """The network, which begins as the identity."""
        return _Residual(channels)


class StableUNet(UNetDenoiser):
    """The same network, trained so that the protected model's answer stays what it is on the clean scan."""

    name = "unet_stability"


class UNet(nn.Module):
    """Three levels, at a half, a quarter and an eighth of the resolution; gives nothing until it is taught."""

    def __init__(self, planes: int, outputs: int, width: int = WIDTH) -> None:
        super().__init__()
        self.fine, self.middle = _stage(4 * planes, width, 1), _stage(width, 2 * width, 2)
        self.coarse = _stage(2 * width, 4 * width, 2)
        self.up_middle, self.up_fine = _stage(6 * width, 2 * width, 1), _stage(3 * width, width, 1)
        self.last = silent(nn.Conv2d(width, 4 * outputs, 3, 1, 1))
        lay_out(self)

    def forward(self, planes: Tensor) -> Tensor:
        """(N, planes, H, W) to (N, outputs, H, W); of any size."""
        rows, columns = planes.shape[2:]
        whole = functional.pad(planes, (0, -columns % _CELL, 0, -rows % _CELL), mode="replicate")
        fine = self.fine(functional.pixel_unshuffle(whole, 2).contiguous(memory_format=torch.channels_last))
        middle = self.middle(fine)
        middle = self.up_middle(torch.cat([middle, _doubled(self.coarse(middle))], 1))
        fine = self.up_fine(torch.cat([fine, _doubled(middle)], 1))
        return functional.pixel_shuffle(self.last(fine), 2)[..., :rows, :columns]


class _Residual(nn.Module):
    """The image less what the U-Net takes for noise, which it gives in levels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.unet = UNet(2 * channels, channels)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) noisy, 0 to 1, to restored."""
        noise: Tensor = self.unet(with_detail(images)) * LEVEL
        return images - noise


def _stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Two normalised convolutions, the first of which may halve the resolution."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


def _doubled(maps: Tensor) -> Tensor:
    """(N, D, h, w) maps at twice the resolution."""
    return functional.interpolate(maps, scale_factor=2, mode="nearest")
