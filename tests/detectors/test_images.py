"""Filters and neighbours do what their names say, on any size, with a gradient."""

import io

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from detectors.denoisers.median import median3
from detectors.errors import InputError
from detectors.filters import gaussian, wiener3
from detectors.neighbours.defaults import default_neighbours
from detectors.neighbours.geometry import Rotation
from detectors.neighbours.jpeg import Jpeg
from detectors.observation import LEVEL, Span


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def smooth(count: int, size: int) -> Tensor:
    return gaussian(images(count, 1, size, size, seed=4), 3.0)


@pytest.mark.parametrize("shape", [(2, 1, 17, 9), (1, 3, 8, 8), (3, 1, 1, 5)])
def test_the_median_is_exact(shape: tuple[int, ...]) -> None:
    x = images(*shape)
    expected = np.stack([[ndimage.median_filter(plane, 3, mode="nearest") for plane in image] for image in x.numpy()])

    assert np.array_equal(median3(x).numpy(), expected)


def test_the_gaussian_agrees_with_scipy() -> None:
    x = images(1, 1, 32, 24)
    expected = ndimage.gaussian_filter(x[0, 0].numpy(), 1.0, mode="nearest", truncate=3.0)

    assert np.allclose(gaussian(x, 1.0)[0, 0].numpy(), expected, atol=1e-5)


def test_the_wiener_filter_smooths_noise_and_keeps_edges() -> None:
    edge = torch.zeros(1, 1, 16, 16)
    edge[..., 8:] = 1
    noise = torch.randn(edge.shape, generator=torch.Generator().manual_seed(1)) * LEVEL

    filtered = wiener3(edge + noise, 3 * LEVEL)

    assert (filtered - edge).abs()[..., :6].mean() < noise.abs()[..., :6].mean() / 2
    assert (filtered - edge).abs()[..., 7:9].max() < 6 * LEVEL


def test_the_jpeg_quantiser_agrees_with_a_real_jpeg_to_its_rounding() -> None:
    """A codec rounds pixels to 8 bits before and after; ours does not, so single levels may differ."""
    image_module = pytest.importorskip("PIL.Image")
    levels = (smooth(1, 64)[0, 0] * 255).round()
    file = io.BytesIO()
    image_module.fromarray(levels.numpy().astype(np.uint8)).save(file, "JPEG", quality=75)
    decoded = torch.from_numpy(np.asarray(image_module.open(file)).astype(np.float32))

    ours = Jpeg(75)((levels * LEVEL)[None, None])[0, 0] * 255

    assert (ours - decoded).abs().quantile(0.95) <= 1.01
    assert (ours - decoded).abs().max() <= 3  # where a coefficient lies on a half, either way is right


def test_in_colour_it_agrees_with_a_real_jpeg_too() -> None:
    """Odd sides, differences of half the resolution; a codec rounds at every step and draws edges out a little."""
    image_module = pytest.importorskip("PIL.Image")
    levels = (torch.stack([smooth(k, 61)[0, 0] for k in (1, 2, 3)], 2) * 255).round()
    file = io.BytesIO()
    image_module.fromarray(levels.numpy().astype(np.uint8)).save(file, "JPEG", quality=75)
    decoded = torch.from_numpy(np.asarray(image_module.open(file)).astype(np.float32))

    ours = Jpeg(75)((levels * LEVEL).permute(2, 0, 1)[None])[0].permute(1, 2, 0) * 255

    apart = (ours - decoded).abs()
    assert apart.mean() <= 1.0
    assert apart.mean() < (levels - decoded).abs().mean() / 2


def test_grey_in_three_channels_is_compressed_like_grey() -> None:
    grey = smooth(1, 45)
    assert torch.allclose(Jpeg(75)(grey.expand(-1, 3, -1, -1)), Jpeg(75)(grey).expand(-1, 3, -1, -1), atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 1, 20, 13), (1, 3, 64, 64)])
def test_neighbours_keep_shape_range_and_gradient(shape: tuple[int, ...]) -> None:
    x = images(*shape).requires_grad_()
    for neighbour in default_neighbours():
        changed = neighbour(x)
        (gradient,) = torch.autograd.grad(changed.sum(), x)
        changed = changed.detach()

        assert changed.shape == x.shape
        assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        assert float(gradient.abs().sum()) > 0


def test_a_rotation_turns_by_its_angle_on_oblong_images_too() -> None:
    """A point at a known place off the centre moves along a circle."""
    point = torch.zeros(1, 1, 41, 81)
    point[0, 0, 20, 70] = 1
    turned = Rotation(10.0)(gaussian(point, 1.5))[0, 0]
    mass = turned / turned.sum()
    row = float((mass.sum(1) * torch.arange(41)).sum()) - 20
    column = float((mass.sum(0) * torch.arange(81)).sum()) - 40

    assert (row**2 + column**2) ** 0.5 == pytest.approx(30, abs=0.3)
    assert abs(np.degrees(np.arctan2(row, column))) == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize(("low", "high"), [((), ()), ((0.0,), (1.0, 1.0)), ((1.0,), (1.0,)), ((2.0,), (1.0,))])
def test_a_span_without_width_is_refused(low: tuple[float, ...], high: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        Span(low, high)
