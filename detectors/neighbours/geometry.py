"""Small moves of an image in its plane, borders repeated; the true gradient passes through all of them."""

import math

from torch import Tensor
from torch.nn import functional


class Rotation:
    """A turn about the centre by a few degrees, bilinear, borders repeated."""

    surrogate = None
    random = False

    def __init__(self, degrees: float) -> None:
        self.name = f"rotation{degrees:g}"
        self._angle = math.radians(degrees)

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Turn (N, C, H, W) images."""
        rows, columns = images.shape[2:]
        cosine, sine = math.cos(self._angle), math.sin(self._angle)
        # affine_grid speaks in units of half the width and half the height: a true turn of an oblong needs the ratio
        turn = images.new_tensor([[cosine, -sine * rows / columns, 0], [sine * columns / rows, cosine, 0]])
        planes = images.reshape(1, -1, rows, columns)  # all turn alike: as channels of one image they share the grid
        grid = functional.affine_grid(turn[None], list(planes.shape), align_corners=False)
        return functional.grid_sample(planes, grid, padding_mode="border", align_corners=False).reshape(images.shape)


class PixelShift:
    """One pixel down and one to the right. Zhang 2019, arXiv:1904.11486 (what such a shift does to a network)."""

    name = "pixel_shift"
    surrogate = None
    random = False

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Move (N, C, H, W) images."""
        return functional.pad(images, (1, 0, 1, 0), mode="replicate")[..., :-1, :-1]


class HalfSize:
    """Halved by the mean of 2 x 2 pixels and brought back, bilinear. Guo et al. 2018, arXiv:1711.00117 (rescaling)."""

    name = "half_size"
    surrogate = None
    random = False

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Rescale (N, C, H, W) images."""
        rows, columns = images.shape[2:]
        half = functional.avg_pool2d(images, 2, ceil_mode=True)
        return functional.interpolate(half, (rows, columns), mode="bilinear", align_corners=False)
