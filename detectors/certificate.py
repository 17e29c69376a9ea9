"""What no small change can do: the answer of a vote over noisy copies, with the radius within which it stands.

Cohen, Rosenfeld and Kolter 2019, arXiv:1902.02918 (randomised smoothing); with a denoiser before the model, so that the
model need not be trained on noise: Salman et al. 2020, arXiv:2003.01908, and, by one step of a diffusion model, Carlini
et al. 2022, arXiv:2206.10550. The certificate cannot be broken inside its radius, except with probability `alpha`.
Limits: the radius is Euclidean, and one grey level on each of 128 x 128 pixels is already 0.5 of the display window, so
that attacks bounded pixel by pixel lie outside of most radii; a vote costs `draws` passes through denoiser and model.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.errors import InputError


@dataclass(frozen=True, slots=True)
class Certificate:
    """The vote's answer on one scan, and how far it holds."""

    answer: int | None
    """The class; None where the vote abstains."""
    radius: float
    """Euclidean, in units of the display window: no change smaller than this changes the answer. 0 when abstaining."""
    lower: float
    """With confidence 1 - alpha, at least this share of noisy copies is given that class."""


def certify(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    *,
    sigma: float,
    generator: torch.Generator,
    draws: int = 1000,
    first: int = 100,
    alpha: float = 0.001,
    batch: int = 100,
) -> Certificate:
    """Let noisy copies of a scan vote.

    (1) a few draws choose the class, so that the others may test it without having chosen it
    (2) the others bound its share from below (Clopper and Pearson 1934)
    (3) more than a half gives a radius; anything else abstains

    Args:
        model: noisy images (N, C, H, W), 0 to 1 but for the noise, to logits (N, K): the denoiser at this noise, and
            the protected model after it.
        image: (C, H, W), 0 to 1.
        sigma: standard deviation of the noise, in units of the display window.
        generator: draws the noise, on the device of `image`; seeded from the scan, so that who sends it again does not
            get another vote.
        draws: copies that test.
        first: copies that choose.
        alpha: chance of a wrong certificate.
        batch: copies that go through the model at once.

    Raises:
        InputError: a shape or a number that allows no certificate.
    """
    if image.ndim != 3 or 0 in image.shape:
        raise InputError(f"the image must be (C, H, W) with no empty axis, not {tuple(image.shape)}")
    if not (sigma > 0 and 0 < alpha < 1 and min(draws, first, batch) > 0):
        raise InputError("a certificate needs noise, draws, and a chance of error between 0 and 1")
    answer = int(_votes(model, image, sigma, generator, first, batch).argmax())  # (1)
    hits = int(_votes(model, image, sigma, generator, draws, batch)[answer])  # (2)
    lower = _lower_bound(hits, draws, alpha)
    if lower <= 1 / 2:  # (3)
        return Certificate(None, 0.0, lower)
    return Certificate(answer, sigma * float(torch.special.ndtri(torch.tensor(lower, dtype=torch.float64))), lower)


def _votes(
    model: Callable[[Tensor], Tensor], image: Tensor, sigma: float, generator: torch.Generator, draws: int, batch: int
) -> Tensor:
    """(K,) how many noisy copies are given each class."""
    counted = []
    for start in range(0, draws, batch):
        shape = (min(batch, draws - start), *image.shape)
        noise = torch.randn(shape, generator=generator, device=image.device, dtype=image.dtype)
        with torch.no_grad():
            logits = model(image + sigma * noise)
        counted.append(torch.bincount(logits.argmax(1), minlength=logits.shape[1]))
    return torch.stack(counted).sum(0)


def _lower_bound(hits: int, draws: int, alpha: float) -> float:
    """The share that `hits` of `draws` show with confidence 1 - alpha."""
    from scipy.special import betaincinv  # noqa: PLC0415 - needed to certify, never to run

    return float(betaincinv(hits, draws - hits + 1, alpha)) if hits else 0.0
