"""What was made quick gives what its definition gives: filters, folded networks, calibrations asked together."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.fft import dctn, idctn
from torch import Tensor, nn
from torch.nn import functional

from detectors.calibration import ConformalCalibration, Guarantee, Promised, TailCalibration
from detectors.denoisers.dncnn import DnCNN
from detectors.denoisers.median import median3
from detectors.denoisers.unet import UNetDenoiser
from detectors.errors import InputError, NotFittedError
from detectors.filters import gaussian, wiener3
from detectors.models.folding import folded, lay_out
from detectors.neighbours.geometry import Rotation
from detectors.neighbours.jpeg import Jpeg
from detectors.observation import LEVEL, Span
from detectors.probe import check_images

SHAPES = ((2, 1, 24, 40), (3, 3, 17, 9), (1, 2, 1, 1))


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def bytes_of(*shape: int) -> Tensor:
    return (drawn(*shape) * 255).round() * LEVEL


@pytest.mark.parametrize("shape", SHAPES)
def test_the_median_is_that_of_nine_sorted_pixels(shape: tuple[int, ...]) -> None:
    images = bytes_of(*shape)
    windows = functional.unfold(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3)
    sorted_ = windows.view(shape[0], shape[1], 9, -1).median(2).values.view(shape)
    assert torch.equal(median3(images), sorted_)


@pytest.mark.parametrize("sigma", [0.3, 0.8, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_gaussian_is_a_convolution_forwards_and_backwards(shape: tuple[int, ...], sigma: float) -> None:
    images, radius = drawn(*shape).double().requires_grad_(True), max(1, math.ceil(3 * sigma))
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).double() / sigma) ** 2)
    kernel /= kernel.sum()
    padded = functional.pad(images, (radius,) * 4, mode="replicate").flatten(0, 1)[:, None]
    by_convolution = functional.conv2d(padded, torch.outer(kernel, kernel)[None, None]).view(shape)
    by_sums = gaussian(images, sigma)
    torch.testing.assert_close(by_sums, by_convolution)
    aim = drawn(*shape, seed=1).double()
    slopes = [torch.autograd.grad((found * aim).sum(), images)[0] for found in (by_sums, by_convolution)]
    torch.testing.assert_close(*slopes)
    single = gaussian(images.detach().float(), sigma)
    torch.testing.assert_close(single, by_sums.detach().float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_wiener_filter_is_that_of_means_and_variances(shape: tuple[int, ...]) -> None:
    images, noise = bytes_of(*shape), 3 * LEVEL
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate").double()
    windows = functional.unfold(padded, 3).view(shape[0], shape[1], 9, -1)
    mean, variance = windows.mean(2).view(shape), windows.var(2, correction=0).view(shape)
    smooth = mean + (1 - noise**2 / variance.clamp_min(noise**2)) * (images - mean)
    torch.testing.assert_close(wiener3(images, noise), smooth.float(), rtol=0, atol=1e-4 * LEVEL)


def test_images_turn_together_as_each_does_alone() -> None:
    images, turn = drawn(5, 3, 20, 28), Rotation(3.0)
    alone = torch.cat([turn(plane[None, None]) for plane in images.flatten(0, 1)]).view(images.shape)
    torch.testing.assert_close(turn(images), alone, rtol=0, atol=1e-6)


def test_jpeg_rounds_alike_on_every_machine() -> None:
    """Of 8-bit images many coefficients lie halfway between two steps: more bits must not move them."""
    images, jpeg = bytes_of(16, 1, 64, 64), Jpeg(75)
    in_double = jpeg((images.double() / LEVEL).round() * LEVEL)
    torch.testing.assert_close(jpeg(images), in_double.float(), rtol=0, atol=1e-5)
    alone = torch.cat([jpeg(image[None]) for image in images])
    torch.testing.assert_close(jpeg(images), alone, rtol=0, atol=1e-5)


def test_jpeg_is_the_cosine_transform_of_each_block() -> None:
    images, jpeg = drawn(2, 1, 13, 8), Jpeg(50)  # at quality 50 the table is the standard's own
    levels = functional.pad(images.double() / LEVEL - 128, (0, 0, 0, 3), mode="replicate")[:, 0]
    table = jpeg.table.view(8, 8).double().numpy()
    for image, expected in zip(jpeg(images)[:, 0], levels, strict=True):
        parts = []
        for block in expected.view(2, 8, 8).numpy():
            steps = dctn(block, norm="ortho") / table
            parts.append(torch.from_numpy(idctn((steps - 1e-3).round() * table, norm="ortho")))
        whole = ((torch.cat(parts)[:13] + 128) * LEVEL).clamp(0, 1).float()
        torch.testing.assert_close(image, whole, rtol=0, atol=1e-5)
    assert table[0, 0] == 16
    assert table[7, 7] == 99


@pytest.mark.parametrize("kind", [DnCNN, UNetDenoiser])
def test_a_folded_network_answers_as_it_did(kind: type[DnCNN | UNetDenoiser]) -> None:
    torch.manual_seed(0)
    network = kind.network(1)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
            elif isinstance(module, nn.Conv2d):
                module.weight.normal_(0, 0.1)
    network.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quick, images = folded(network), drawn(2, 1, 24, 16).requires_grad_(True)
    torch.testing.assert_close(quick(images), network(images), rtol=1e-4, atol=1e-5)
    slopes = [torch.autograd.grad(each(images).square().sum(), images)[0] for each in (quick, network)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in quick.modules())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_the_first_layer_answers_channels_last_even_of_a_single_channel() -> None:
    layer = nn.Conv2d(1, 8, 3, 1, 1).requires_grad_(False)
    before = layer(drawn(2, 1, 16, 16))
    lay_out(layer)
    after = layer(drawn(2, 1, 16, 16))
    assert after.stride(1) == 1
    torch.testing.assert_close(after, before)


def test_images_in_the_models_own_units_are_not_copied() -> None:
    images, same = drawn(2, 1, 4, 4), Span((0.0,), (1.0,))
    assert same.to_unit(images) is images
    assert same.from_unit(images) is images
    assert torch.equal(Span((0.0, 0.0), (1.0, 2.0)).from_unit(drawn(1, 2, 4, 4))[:, 1], 2 * drawn(1, 2, 4, 4)[:, 1])


def test_calibrations_asked_together_answer_as_each_alone() -> None:
    clean = {"few": drawn(120), "many": drawn(400, seed=1).double(), "ties": bytes_of(300)}
    scores = {
        name: torch.cat([values[:5].double(), drawn(20, seed=2).double() * 1.5]) for name, values in clean.items()
    }
    promised = {name: ConformalCalibration.fit(values, 0.01) for name, values in clean.items()}
    assert {each.guarantee for each in promised.values()} == set(Guarantee)
    together = Promised(promised).p_values(scores)
    assert {name: promised[name].p_value(values).tolist() for name, values in scores.items()} == {
        name: values.tolist() for name, values in together.items()
    }
    with pytest.raises(InputError, match="not a number"):
        Promised(promised).p_values(scores | {"few": torch.full((25,), torch.nan)})


def test_tails_read_together_are_those_of_each_alone() -> None:
    tails = [TailCalibration.fit(drawn(200, seed=seed) * (seed + 1)) for seed in range(3)]
    scores = torch.stack([drawn(50, seed=9) * size for size in (0.5, 2.0, 8.0)])
    alone = torch.stack([tail.surprise(row) for tail, row in zip(tails, scores, strict=True)])
    assert torch.equal(TailCalibration.together(tails).surprise(scores), alone)
    with pytest.raises(NotFittedError, match="as many knots"):
        TailCalibration.together([*tails, TailCalibration.fit(drawn(200), knots=12)])


def test_large_values_are_finite_and_one_that_is_not_is_found() -> None:
    large = torch.full((2, 1, 8, 8), torch.finfo(torch.float32).max)
    check_images(large, torch.device("cpu"))
    for value in (torch.nan, torch.inf, -torch.inf):
        images = torch.zeros(2, 1, 8, 8)
        images[1, 0, 3, 3] = value
        with pytest.raises(InputError, match="not finite"):
            check_images(images, torch.device("cpu"))
