"""Total variation: the image nearest to the scan whose edges, added up, are shortest.

Rudin, Osher and Fatemi 1992, doi:10.1016/0167-2789(92)90242-F, solved by the accelerated primal-dual method of
Chambolle and Pock 2011, doi:10.1007/s10851-010-0251-1 (algorithm 2); against attacks Guo et al. 2018,
arXiv:1711.00117. Limits: texture goes with the noise; every step has a gradient, so an attack that differentiates
through them breaks it (Athalye et al. 2018, arXiv:1802.00420).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from detectors.denoisers.windowed import Windowed
from detectors.observation import LEVEL


@dataclass(frozen=True)
class TotalVariation(Windowed):
    """Minimises |u - x|^2 / 2 + weight TV(u), isotropic, each channel by itself."""

    weight_levels: float = 2.0
    """Of the total variation; an isolated pixel is lowered by at most about four times as much."""
    iterations: int = 30

    name = "total_variation"

    def restore(self, unit: Tensor) -> Tensor:
        """Solve for (N, C, H, W) images."""
        weight, tau, sigma = self.weight_levels * LEVEL, 0.25, 0.5  # tau sigma <= 1 / 8, the gradient's norm squared
        image = ahead = unit
        down, across = torch.zeros_like(unit), torch.zeros_like(unit)  # in units of the weight
        for _ in range(self.iterations):
            rise, run = _gradient(ahead)
            down, across = torch.add(down, rise, alpha=sigma / weight), torch.add(across, run, alpha=sigma / weight)
            shrink = torch.addcmul(down.square(), across, across).clamp_min(1).rsqrt()
            down, across = down * shrink, across * shrink
            wanted = torch.add(unit, _divergence(down, across), alpha=weight)
            before, image = image, torch.lerp(image, wanted, tau / (1 + tau))
            theta = 1 / math.sqrt(1 + 2 * tau)
            tau, sigma = tau * theta, sigma / theta
            ahead = torch.lerp(before, image, 1 + theta)
        return image


def _gradient(images: Tensor) -> tuple[Tensor, Tensor]:
    """Differences to the next row and to the next column, none at the last; each (N, C, H, W)."""
    padded = functional.pad(images, (0, 1, 0, 1), mode="replicate")
    return padded[..., 1:, :-1] - images, padded[..., :-1, 1:] - images


def _divergence(down: Tensor, across: Tensor) -> Tensor:
    """Minus the transpose of `_gradient`, whose last row and column are zero; (N, C, H, W)."""
    total = down + across
    total[..., 1:, :] -= down[..., :-1, :]
    total[..., 1:] -= across[..., :-1]
    return total
