"""The bilateral filter: neighbours count by their distance in place and in value, so that edges stay.

Tomasi and Manduchi 1998, "Bilateral filtering for gray and color images". Limits: a perturbation that is large beside
`sigma_levels` is taken for an edge and kept; the filter is smooth, so an attack that differentiates through it breaks
it (Athalye et al. 2018, arXiv:1802.00420; He et al. 2017, arXiv:1706.04701, for filters as detectors).
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from detectors.denoisers.pairs import Place, weighted_mean
from detectors.denoisers.windowed import Windowed
from detectors.observation import LEVEL


@dataclass(frozen=True)
class Bilateral(Windowed):
    """Weights by a Gaussian of the place and one of the value; the channels of a colour share their weights."""

    sigma_levels: float = 8.0
    """Of the difference in value, in grey levels; over all channels, Euclidean."""
    sigma_pixels: float = 1.2
    radius: int = 2
    """Of the square window, in pixels."""

    name = "bilateral"

    def restore(self, unit: Tensor) -> Tensor:
        """Filter (N, C, H, W) images; borders repeat."""
        padded = functional.pad(unit, (self.radius,) * 4, mode="replicate")

        def alike(i: int, j: int, here: Place, there: Place) -> Tensor:
            apart = (padded[here] - padded[there]).square_().sum(1, keepdim=True)
            far = (i * i + j * j) / self.sigma_pixels**2
            return apart.mul_(-0.5 / (self.sigma_levels * LEVEL) ** 2).sub_(0.5 * far).exp_()

        return weighted_mean(padded, self.radius, alike)
