"""Linear and local smoothing in batched torch; borders repeat.

Sums of shifted images, not convolutions: for a single channel those are five to ten times as slow on a CPU.
"""

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional


def gaussian(images: Tensor, sigma: float) -> Tensor:
    """Smooth (N, C, H, W) images by a Gaussian of `sigma` pixels, cut at three of them."""
    radius = max(1, math.ceil(3 * sigma))
    kernel = gaussian_kernel(sigma, radius)
    padded = functional.pad(images, (radius,) * 4, mode="replicate")
    return along(along(padded, 2, kernel), 3, kernel)


def wiener3(images: Tensor, noise: float) -> Tensor:
    """Smooth (N, C, H, W) images where their 3 x 3 variance does not exceed that of noise.

    Lee 1980, "Digital image enhancement and noise filtering by use of local statistics".

    Args:
        images: the images.
        noise: standard deviation of the noise, in their units.
    """
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    mean = _mean3(padded)
    variance = (_mean3(padded.square()) - mean.square()).clamp_min(0)
    gain = (variance - noise**2).clamp_min(0) / variance.clamp_min(noise**2)
    return mean + gain * (images - mean)


def _mean3(padded: Tensor) -> Tensor:
    """(N, C, H, W): the mean of 3 x 3 pixels, of images with a margin of one."""
    return along(along(padded, 2, (1.0, 1.0)), 3, (1.0, 1.0)) / 9


def gaussian_kernel(sigma: float, radius: int) -> list[float]:
    """A Gaussian of `sigma` pixels from its middle outwards, cut at `radius`; the whole of it sums to 1."""
    weights = [math.exp(-0.5 * (far / sigma) ** 2) for far in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    return [weight / total for weight in weights]


def along(padded: Tensor, axis: int, kernel: Sequence[float]) -> Tensor:
    """Correlate along one axis with a symmetric kernel, given from its middle outwards; the margin is used up."""
    radius = len(kernel) - 1
    length = padded.shape[axis] - 2 * radius
    total = padded.narrow(axis, radius, length) * kernel[0]
    for far, weight in enumerate(kernel[1:], 1):
        pair = padded.narrow(axis, radius - far, length) + padded.narrow(axis, radius + far, length)
        total = total.add_(pair, alpha=weight)
    return total
