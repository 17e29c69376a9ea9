"""Linear and local smoothing in batched torch; borders repeat."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def gaussian(images: Tensor, sigma: float) -> Tensor:
    """Smooth (N, C, H, W) images by a Gaussian of `sigma` pixels, cut at three of them."""
    radius = max(1, math.ceil(3 * sigma))
    places = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = kernel / kernel.sum()
    n, c, rows, columns = images.shape
    flat = functional.pad(images.reshape(n * c, 1, rows, columns), (radius,) * 4, mode="replicate")
    flat = functional.conv2d(functional.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return flat.reshape(images.shape)


def wiener3(images: Tensor, noise: float) -> Tensor:
    """Smooth (N, C, H, W) images where their 3 x 3 variance does not exceed that of noise.

    Lee 1980, "Digital image enhancement and noise filtering by use of local statistics".

    Args:
        images: the images.
        noise: standard deviation of the noise, in their units.
    """
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    mean = functional.avg_pool2d(padded, 3, 1)
    variance = (functional.avg_pool2d(padded.square(), 3, 1) - mean.square()).clamp_min(0)
    gain = (variance - noise**2).clamp_min(0) / variance.clamp_min(noise**2)
    return mean + gain * (images - mean)
