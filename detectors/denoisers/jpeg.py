"""Compression as a denoiser: the quantiser of JPEG, at the images' own precision.

Das et al. 2017, arXiv:1705.02900; Guo et al. 2018, arXiv:1711.00117. The gradient is the identity's, for rounding has
none. Limits: broken by who differentiates through a smooth stand-in (Shin and Song 2017, "JPEG-resistant adversarial
images") or takes the identity (Athalye et al. 2018, arXiv:1802.00420). Pixels are not rounded to 8 bits, but each 8 x 8
block's coefficients are to its table: a ramp slower than a step of the table comes out as stairs, at any depth.
"""

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from detectors.denoisers.windowed import Windowed
from detectors.neighbours.jpeg import Jpeg


@dataclass(frozen=True)
class JpegDenoiser(Windowed):
    """JPEG's quantisation, without its entropy coding."""

    quality: int = 75

    name = "jpeg"
    surrogate = Jpeg.surrogate

    def restore(self, unit: Tensor) -> Tensor:
        """Quantise (N, 1 or 3, H, W) images; colour by its brightness and its two differences."""
        return self._quantiser(unit)

    @cached_property
    def _quantiser(self) -> Jpeg:
        return Jpeg(self.quality)
