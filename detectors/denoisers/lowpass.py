"""The Gaussian low-pass: what changes fast goes, whoever put it there.

The oldest denoiser, and one of the prediction shifts of Xu et al. 2018, arXiv:1704.01155. Limits: fine structure goes
with the noise; an attack made of low frequencies passes it whole (Guo et al. 2018, arXiv:1809.08758), and one that
differentiates through it, a linear map, loses nothing (Athalye et al. 2018, arXiv:1802.00420).
"""

from dataclasses import dataclass

from torch import Tensor

from detectors.denoisers.windowed import Windowed
from detectors.filters import gaussian


@dataclass(frozen=True)
class LowPass(Windowed):
    """A Gaussian blur."""

    sigma_pixels: float = 0.8

    name = "lowpass"

    def restore(self, unit: Tensor) -> Tensor:
        """Blur (N, C, H, W) images."""
        return gaussian(unit, self.sigma_pixels)
