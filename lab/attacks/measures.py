"""How much an attack changed: norms in grey levels, PSNR and SSIM, image by image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.filters import gaussian
from lab.attacks.attack import Target

SIGMA = 1.5
"""Of the window in which structures are compared, in pixels."""
_MEANS, _VARIANCES = 0.01**2, 0.03**2
"""What keeps the quotients of SSIM finite: Wang et al. 2004, with a white of 1."""


@dataclass(frozen=True, slots=True)
class Change:
    """The difference between images and their attacked copies, (N,) float32 each, in 8-bit grey levels."""

    linf: Tensor
    """Largest change of a value."""
    l2: Tensor
    """Length of the whole change."""
    l1: Tensor
    """Sum of all changes."""
    l0: Tensor
    """Share of the values that changed, 0 to 1."""
    rms: Tensor
    """Root of the mean square, which no image size changes."""
    psnr: Tensor
    """Peak signal-to-noise ratio in decibels, white being the window's upper end; infinite where nothing changed."""
    ssim: Tensor
    """Structural similarity, 1 where nothing changed: as the window shows the images."""


def change(target: Target, before: Tensor, after: Tensor) -> Change:
    """Compare (N, C, rows, columns) stored values with their attacked copies.

    Norms count every stored value, seen or not; SSIM compares what the window shows.
    """
    assert before.shape == after.shape
    levels = ((after - before) / target.level).flatten(1)
    rms = levels.square().mean(dim=1).sqrt()
    shown = [((x - target.black) / target.unit).clamp(0, 1) for x in (before, after)]
    return Change(
        linf=levels.abs().amax(dim=1),
        l2=levels.norm(dim=1),
        l1=levels.abs().sum(dim=1),
        l0=(levels != 0).float().mean(dim=1),
        rms=rms,
        psnr=20 * torch.log10(255 / rms),
        ssim=ssim(*shown),
    )


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return (N,): mean structural similarity of (N, C, rows, columns) images from 0 to 1.

    Wang et al. 2004, doi:10.1109/TIP.2003.819861, with its Gaussian window; borders repeat.
    """
    first, second = first.double(), second.double()  # what is left of a variance is a small difference
    mean = [gaussian(x, SIGMA) for x in (first, second)]
    spread = [gaussian(x * x, SIGMA) - m * m for x, m in zip((first, second), mean, strict=True)]
    together = gaussian(first * second, SIGMA) - mean[0] * mean[1]
    bright = (2 * mean[0] * mean[1] + _MEANS) / (mean[0] ** 2 + mean[1] ** 2 + _MEANS)
    alike = (2 * together + _VARIANCES) / (spread[0] + spread[1] + _VARIANCES)
    return (bright * alike).flatten(1).mean(dim=1).float()
