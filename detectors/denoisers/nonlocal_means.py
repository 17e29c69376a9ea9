"""Non-local means: a pixel is averaged with those whose surroundings look like its own.

Buades, Coll and Morel 2005, "A non-local algorithm for image denoising"; used against attacks by Xu et al. 2018,
arXiv:1704.01155. Limits: where nothing in the window looks alike, nothing is removed; smooth, so an attack that
differentiates through it breaks it (Athalye et al. 2018, arXiv:1802.00420).
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from detectors.denoisers.pairs import Place, weighted_mean
from detectors.denoisers.windowed import Windowed
from detectors.filters import along, gaussian_kernel
from detectors.observation import LEVEL


@dataclass(frozen=True)
class NonLocalMeans(Windowed):
    """Patches are compared by their squared difference under a Gaussian, over all channels."""

    strength_levels: float = 4.0
    """Root mean square difference of two patches, in grey levels, at which their weight has fallen to 1/e."""
    patch_radius: int = 2
    """In pixels; the Gaussian's deviation is half of it."""
    search_radius: int = 5

    name = "nonlocal_means"

    def restore(self, unit: Tensor) -> Tensor:
        """Filter (N, C, H, W) images; borders repeat."""
        patch = self.patch_radius
        padded = functional.pad(unit, (self.search_radius + patch,) * 4, mode="replicate")
        kernel = gaussian_kernel(patch / 2, patch)
        decay = -1 / (self.strength_levels * LEVEL) ** 2

        def alike(_i: int, _j: int, here: Place, there: Place) -> Tensor:
            apart = (padded[here] - padded[there]).square_().mean(1, keepdim=True)
            return along(along(apart, 2, kernel), 3, kernel).mul_(decay).exp_()

        return weighted_mean(padded[..., patch:-patch, patch:-patch], self.search_radius, alike)
