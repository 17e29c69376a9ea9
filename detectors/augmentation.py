"""Images turned, scaled, shifted and brightened at random, so that few scans teach more."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How far images are moved; each number is a standard deviation."""

    rotation_deg: float = 8.0
    scale: float = 0.05
    shift: float = 0.025
    """As a share of the image."""
    gain: float = 0.05
    mirror: bool = False
    """Whether left and right may be exchanged; never where the side matters."""

    def __call__(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """(N, C, H, W), each moved by its own draws, which lie on the device of the images; outside is the edge."""
        count, device = len(images), images.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draws, device=device)

        angle = normal(count) * (self.rotation_deg * torch.pi / 180)
        scale = 1 + normal(count) * self.scale
        flip = torch.ones(count, device=device)
        if self.mirror:
            flip = 1 - 2 * (torch.rand(count, generator=draws, device=device) < 0.5).float()
        cosine, sine = angle.cos() * scale, angle.sin() * scale
        shift = normal(2, count) * (2 * self.shift)
        theta = torch.stack(
            [torch.stack([cosine * flip, -sine, shift[0]], 1), torch.stack([sine * flip, cosine, shift[1]], 1)], 1
        )
        grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
        moved = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return moved * (1 + normal(count, 1, 1, 1) * self.gain)
