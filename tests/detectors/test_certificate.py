"""A certificate never says more than is true: measured on models whose true radius is known."""

import math

import pytest
import torch
from torch import Tensor

from detectors.certificate import certify
from detectors.errors import InputError

SIDE = 8


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plane(images: Tensor) -> Tensor:
    """Two classes, parted by a plane at a mean of one half: a vote over noise has the same border as the model."""
    lead = images.mean((1, 2, 3)) - 0.5
    return torch.stack([-lead, lead], 1)


def lit(mean: float) -> tuple[Tensor, float]:
    """A flat image, and how far in the Euclidean norm it is from the other class."""
    return torch.full((1, SIDE, SIDE), mean), abs(mean - 0.5) * SIDE


@pytest.mark.parametrize("mean", [0.40, 0.47, 0.55, 0.60])
def test_the_radius_is_below_the_true_one_and_not_far_below(mean: float) -> None:
    image, distance = lit(mean)

    found = certify(plane, image, sigma=0.5, generator=generator(), draws=4000)

    assert found.answer == int(mean > 0.5)
    assert 0.8 * distance < found.radius <= distance


def test_a_hundred_certificates_hold() -> None:
    """At one chance in a thousand of a wrong one, none of a hundred is."""
    for seed in range(100):
        image, distance = lit(0.5 + 0.001 * (seed + 1))

        found = certify(plane, image, sigma=0.5, generator=generator(seed), draws=200, first=20)

        assert found.answer in (1, None)
        assert found.radius <= distance


def test_a_vote_that_is_even_abstains() -> None:
    found = certify(plane, lit(0.5)[0], sigma=0.5, generator=generator())

    assert (found.answer, found.radius) == (None, 0.0)
    assert found.lower <= 0.5


def test_a_unanimous_vote_is_bounded_by_its_draws() -> None:
    """Clopper and Pearson: with n of n, the share is at least alpha^(1/n)."""
    found = certify(plane, lit(1.0)[0], sigma=0.1, generator=generator(), draws=500, alpha=0.01)

    assert found.lower == pytest.approx(0.01 ** (1 / 500))
    assert found.radius == pytest.approx(
        0.1 * math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * found.lower - 1))), rel=1e-3
    )


def test_the_same_seed_gives_the_same_certificate() -> None:
    image = lit(0.53)[0]

    assert certify(plane, image, sigma=0.5, generator=generator(3)) == certify(
        plane, image, sigma=0.5, generator=generator(3)
    )


@pytest.mark.parametrize(
    ("shape", "settings"),
    [((1, 1, 8, 8), {}), ((1, 0, 8), {}), ((1, 8, 8), {"draws": 0}), ((1, 8, 8), {"alpha": 1.0})],
)
def test_what_allows_no_certificate_is_refused(shape: tuple[int, ...], settings: dict[str, float]) -> None:
    with pytest.raises(InputError):
        certify(plane, torch.zeros(shape), sigma=0.5, generator=generator(), **settings)  # type: ignore[arg-type]
    with pytest.raises(InputError):
        certify(plane, torch.zeros(1, 8, 8), sigma=0.0, generator=generator())
