"""Random numbers that follow from the seed alone: the published bits, the promised independence, the right shape."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from detectors.errors import InputError
from detectors.neighbours.noise import Noise
from detectors.observation import LEVEL
from detectors.randomness import normal, philox, stream, uniform

SHAPE = (1, 32, 32)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def seeds(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_generator_gives_the_published_words(
    counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]
) -> None:
    """The known answers of its authors' library (Random123)."""
    found = philox(tuple(seeds(word) for word in counter), (seeds(key[0]), seeds(key[1])))
    assert tuple(int(word) for word in found) == words


@pytest.mark.parametrize("draw", [uniform, normal])
def test_an_image_draws_the_same_in_any_company(draw: type[uniform]) -> None:
    together = draw(seeds(5, -7, 2**63 - 1), SHAPE, 3)

    assert torch.equal(together[1:2], draw(seeds(-7), SHAPE, 3))
    assert torch.equal(together.flip(0), draw(seeds(2**63 - 1, -7, 5), SHAPE, 3))


@pytest.mark.parametrize("draw", [uniform, normal])
def test_other_seeds_and_other_streams_draw_other_numbers(draw: type[uniform]) -> None:
    one = draw(seeds(1), SHAPE, 0)

    for other in (draw(seeds(2), SHAPE, 0), draw(seeds(1 + (1 << 32)), SHAPE, 0), draw(seeds(1), SHAPE, 1)):
        assert abs(float(np.corrcoef(one.flatten(), other.flatten())[0, 1])) < 0.1  # 3.2 standard errors of 1,024 pairs


@pytest.mark.parametrize(("draw", "law"), [(uniform, stats.uniform), (normal, stats.norm)])
def test_the_numbers_have_the_distribution_that_they_are_named_after(draw: type[uniform], law: object) -> None:
    """Kolmogorov-Smirnov over half a million numbers of 512 neighbouring seeds; fixed seeds, so a fixed answer."""
    values = draw(torch.arange(512), SHAPE, 0).double().flatten().numpy()

    assert stats.kstest(values, law.cdf).pvalue > 0.01
    tail = np.abs(values) > 3.5 if law is stats.norm else values < 1e-4
    expected = 2 * stats.norm.sf(3.5) if law is stats.norm else 1e-4
    assert stats.binomtest(int(tail.sum()), len(values), expected).pvalue > 0.01


@pytest.mark.parametrize("draw", [uniform, normal])
@pytest.mark.parametrize("lag", [1, 2, 4, 32])
def test_pixels_and_images_are_independent(draw: type[uniform], lag: int) -> None:
    values = draw(torch.arange(256), SHAPE, 0).double().flatten(1)
    standard = (values - values.mean()) / values.std()

    for product in (standard[:, lag:] * standard[:, :-lag], standard[lag:] * standard[:-lag]):
        assert abs(float(product.mean())) * math.sqrt(product.numel()) < 4


def test_every_bit_of_every_byte_is_even() -> None:
    words = (uniform(torch.arange(256), (4096,), 9).double() * 2**24).long()
    sides = torch.stack([(words >> bit) & 1 for bit in range(1, 24)]).double().mean((1, 2))  # odd multiples of 2**-24

    assert float((sides - 0.5).abs().max()) * 2 * math.sqrt(words.numel()) < 4


def test_odd_counts_and_other_ranks_are_cut_to_shape() -> None:
    assert normal(seeds(1, 2), (3,)).shape == (2, 3)
    assert torch.equal(normal(seeds(1), (2, 3, 5)).flatten(), normal(seeds(1), (30,)).flatten())
    assert torch.equal(normal(seeds(1), (7,))[0], normal(seeds(1), (8,))[0, :7])


@cuda
@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_gpu_draws_the_same_bits(draw: type[uniform]) -> None:
    many = torch.arange(64) * 0x9E3779B97F4A7C1

    assert torch.equal(draw(many.cuda(), (3, 64, 64), 11).cpu(), draw(many, (3, 64, 64), 11))


def test_noisy_copies_differ_by_number_and_come_again_by_seed() -> None:
    images, chosen = torch.full((2, 1, 64, 64), 0.5), seeds(3, 4)
    first, again, second = (Noise(6, copy)(images, chosen) for copy in (0, 0, 1))

    assert torch.equal(first, again)
    assert float(((first - 0.5) * (second - 0.5)).mean()) < 1e-5 < float((first - 0.5).square().mean())
    assert float((first - 0.5).std()) == pytest.approx(6 * LEVEL, rel=0.03)
    with pytest.raises(InputError, match="noise6_0 needs seeds"):
        Noise(6)(images)


def test_streams_of_names_differ() -> None:
    assert len({stream(f"noise{levels}_{copy}") for levels in range(1, 30) for copy in range(100)}) == 2900
