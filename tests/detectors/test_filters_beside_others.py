"""Filters do what their papers say: beside other people's implementations, and beside the definition written out."""

import math

import numpy as np
import pytest
import pywt
import torch
from skimage import data, restoration
from torch import Tensor

from detectors.denoisers.bilateral import Bilateral
from detectors.denoisers.nonlocal_means import NonLocalMeans
from detectors.denoisers.total_variation import TotalVariation
from detectors.denoisers.wavelet import Wavelet, analyse, synthesise
from detectors.denoisers.windowed import Windowed
from detectors.observation import LEVEL, Span

UNIT = Span((0.0,), (1.0,))


def images(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def photograph() -> tuple[Tensor, Tensor]:
    """A part of a real picture, of odd size, and the same with noise of five levels; (1, 1, 96, 95), 64 bits."""
    picture = torch.from_numpy(data.camera()[100:196, 100:195] / 255)[None, None]
    noise = 5 * LEVEL * torch.randn(picture.shape, generator=torch.Generator().manual_seed(2), dtype=picture.dtype)
    return picture, (picture + noise).clamp(0, 1)


@pytest.mark.parametrize("kind", [Bilateral, NonLocalMeans, TotalVariation, Wavelet])
def test_filters_take_noise_from_a_photograph(kind: type[Windowed]) -> None:
    clean, noisy = photograph()

    error = (kind(UNIT)(noisy) - clean).square().mean()

    assert error < 0.7 * (noisy - clean).square().mean()


def test_bilateral_is_that_of_scikit_image() -> None:
    """With every place of the window alike: scikit-image's table of places is one column off for odd windows."""
    noisy = photograph()[1]
    expected = restoration.denoise_bilateral(
        noisy[0, 0].numpy(), win_size=5, sigma_color=8 / 255, sigma_spatial=1e6, mode="edge", bins=100_000
    )

    ours = Bilateral(UNIT, sigma_levels=8.0, sigma_pixels=1e6, radius=2)(noisy)

    assert np.abs(ours[0, 0].numpy() - expected).max() < 1e-4


def test_bilateral_weighs_places_and_colours_by_their_distance() -> None:
    """The definition, written out at one pixel of a colour image."""
    span = Span((0.0,) * 3, (1.0,) * 3)
    colour = images(1, 3, 5, 5)
    middle, total, weights = colour[0, :, 2, 2], torch.zeros(3, dtype=torch.float64), 0.0
    for i in range(-2, 3):
        for j in range(-2, 3):
            other = colour[0, :, 2 + i, 2 + j]
            apart = float((other - middle).square().sum()) / (60 * LEVEL) ** 2
            weight = math.exp(-0.5 * (apart + (i * i + j * j) / 1.2**2))
            total, weights = total + weight * other, weights + weight

    ours = Bilateral(span, sigma_levels=60.0, sigma_pixels=1.2, radius=2)(colour)

    assert torch.allclose(ours[0, :, 2, 2], total / weights, atol=1e-12)


def test_nonlocal_means_is_that_of_scikit_image() -> None:
    """Away from the border, which it mirrors; its exponential is a quick one, good to some per cent."""
    noisy = photograph()[1]
    expected = restoration.denoise_nl_means(
        noisy[0, 0].numpy(), patch_size=5, patch_distance=3, h=150 / 255, fast_mode=False
    )

    ours = NonLocalMeans(UNIT, strength_levels=150.0, patch_radius=2, search_radius=3)(noisy)

    assert np.abs(ours[0, 0].numpy() - expected)[6:-6, 6:-6].max() < LEVEL
    assert np.abs(ours[0, 0].numpy() - expected)[6:-6, 6:-6].mean() < LEVEL / 10


def test_nonlocal_means_weighs_patches_under_a_gaussian() -> None:
    """The definition, written out at one pixel."""
    image = images(1, 1, 7, 7)
    gauss = torch.exp(-2 * torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64))
    window = torch.outer(gauss, gauss) / gauss.sum() ** 2
    own, total, weights = image[0, 0, 2:5, 2:5], 0.0, 0.0
    for i in range(-2, 3):
        for j in range(-2, 3):
            patch = image[0, 0, 2 + i : 5 + i, 2 + j : 5 + j]
            weight = math.exp(-float((window * (patch - own) ** 2).sum()) / (50 * LEVEL) ** 2)
            total, weights = total + weight * float(patch[1, 1]), weights + weight

    ours = NonLocalMeans(UNIT, strength_levels=50.0, patch_radius=1, search_radius=2)(image)

    assert float(ours[0, 0, 3, 3]) == pytest.approx(total / weights, abs=1e-12)


@pytest.mark.parametrize("weight", [2.0, 8.0])
def test_total_variation_reaches_the_minimum_that_scikit_image_finds(weight: float) -> None:
    noisy = photograph()[1]
    theirs = restoration.denoise_tv_chambolle(noisy[0, 0].numpy(), weight * LEVEL, eps=1e-9, max_num_iter=2000)

    ours = TotalVariation(UNIT, weight, 300)(noisy)
    usual = TotalVariation(UNIT, weight)(noisy)

    least = _energy(torch.from_numpy(theirs)[None, None], noisy, weight * LEVEL)
    assert _energy(ours, noisy, weight * LEVEL) < 1.0001 * least
    assert _energy(usual, noisy, weight * LEVEL) < 1.01 * least
    assert np.abs(ours[0, 0].numpy() - theirs).max() < LEVEL


def _energy(image: Tensor, noisy: Tensor, weight: float) -> float:
    """What total variation is to make small."""
    down, across = torch.zeros_like(image), torch.zeros_like(image)
    down[..., :-1, :], across[..., :-1] = image.diff(dim=2), image.diff(dim=3)
    return float((image - noisy).square().sum() / 2 + weight * torch.hypot(down, across).sum())


@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (9, 2), (33, 64)])
def test_the_wavelet_transform_is_that_of_pywavelets_and_has_an_inverse(shape: tuple[int, int]) -> None:
    image = images(1, 1, *shape)
    smooth_band, details = pywt.dwt2(image[0, 0].numpy(), "db4", mode="symmetric")

    bands = analyse(image)

    assert np.allclose(bands[0, 0].numpy(), smooth_band, atol=1e-10)
    for ours, theirs in zip(bands[0, [2, 1, 3]].numpy(), details, strict=True):
        assert np.allclose(np.abs(ours), np.abs(theirs), atol=1e-10)
    assert torch.allclose(synthesise(bands, *shape), image, atol=1e-10)


def test_wavelet_shrinkage_is_that_of_scikit_image() -> None:
    noisy = photograph()[1]
    expected = restoration.denoise_wavelet(
        noisy[0, 0].numpy(), wavelet="db4", method="BayesShrink", mode="soft", wavelet_levels=3
    )

    ours = Wavelet(UNIT, 3)(noisy)

    assert np.abs(ours[0, 0].numpy() - np.clip(expected, 0, 1)).max() < LEVEL / 10
