"""A small residual denoising network, trained on the clean scans of one source.

Zhang et al. 2017, arXiv:1608.03981 (DnCNN: learn the noise, subtract it), on the four sub-images of each 2 x 2 cell as
in Zhang et al. 2018, arXiv:1710.04026, which costs a quarter. Limits: an attacker who differentiates through it
defeats it (Athalye et al. 2018, arXiv:1802.00420); it is a help in the grey zone, never a gate.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.denoisers.learned import Learned
from detectors.filters import gaussian
from detectors.observation import LEVEL

DEPTH, WIDTH = 8, 32


class DnCNN(Learned):
    """Subtracts the noise that a network sees."""

    name = "dncnn"

    @staticmethod
    def network(channels: int) -> nn.Module:
        """The network, which begins as the identity."""
        return _Network(channels)


class StableDnCNN(DnCNN):
    """The same network, trained so that the protected model's answer stays what it is on the clean scan."""

    name = "dncnn_stability"


class _Network(nn.Module):
    """Convolutions at half the resolution; they see the image and its fine detail, and give the noise in levels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(8 * channels, WIDTH, 3, 1, 1), nn.ReLU()]
        for _ in range(DEPTH - 2):
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
        self.layers = nn.Sequential(*layers, silent(nn.Conv2d(WIDTH, 4 * channels, 3, 1, 1)))

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) noisy, 0 to 1, to restored; of any size."""
        rows, columns = images.shape[2:]
        even = functional.pad(images, (0, columns % 2, 0, rows % 2), mode="replicate")
        seen = functional.pixel_unshuffle(with_detail(even), 2)
        noise = functional.pixel_shuffle(self.layers(seen.contiguous(memory_format=torch.channels_last)), 2) * LEVEL
        return images - noise[..., :rows, :columns]


def with_detail(images: Tensor) -> Tensor:
    """(N, 2 C, H, W): the fine detail of images (N, C, H, W), in units of four grey levels, and the images."""
    detail = ((images - gaussian(images, 2.0)) / (4 * LEVEL)).clamp(-8, 8)
    return torch.cat([detail, images * 4 - 2], 1)


def silent(layer: nn.Conv2d) -> nn.Conv2d:
    """A last layer that gives nothing until it is taught."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(torch.as_tensor(layer.bias))
    return layer
