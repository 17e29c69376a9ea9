"""Changed copies, votes and attributions by themselves, on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom

from detectors.methods.explanation import described, gradient_shap
from detectors.methods.medrdf import lower_bounds
from detectors.neighbours.chained import Chained
from detectors.neighbours.noise import Noise
from detectors.neighbours.occlusion import grid
from detectors.neighbours.squeezing import BitDepth, MedianShift


def test_a_grid_hides_every_pixel_once() -> None:
    images = torch.rand(2, 1, 10, 13, generator=torch.Generator().manual_seed(0))
    hidden = torch.stack([(each(images) != images).float() for each in grid(4)])

    assert bool((hidden.sum(0) == 1).all())


def test_bits_count_over_the_whole_window_and_let_the_gradient_through() -> None:
    ramp = torch.linspace(0, 1, 257).view(1, 1, 1, -1).requires_grad_()
    found = BitDepth(3)(ramp)

    assert len(found.unique()) == 8
    assert (float(found.detach().min()), float(found.detach().max())) == (0, 1)
    torch.autograd.backward(found.sum())
    assert ramp.grad is not None
    assert bool((ramp.grad == 1).all())


def test_a_chain_does_one_after_the_other() -> None:
    images, seeds = torch.rand(2, 1, 8, 8), torch.tensor([1, 2])
    chain = Chained(Noise(6.0), MedianShift())

    assert torch.equal(chain(images, seeds), MedianShift()(Noise(6.0)(images, seeds)))
    assert chain.random
    assert chain.name == "noise6_0_median3"


def test_gradient_shap_of_a_linear_model_is_its_weight_times_what_differs_from_noise() -> None:
    weights = torch.randn(1, 1, 6, 6, generator=torch.Generator().manual_seed(4))
    images, seeds = torch.rand(3, 1, 6, 6), torch.arange(3)
    many = gradient_shap(lambda x: (x * weights).sum((1, 2, 3)), images, seeds, samples=400)

    assert torch.allclose(many, weights * (images - 0.5), atol=0.2)


def test_a_map_is_described_alike_at_any_scale_but_for_its_size() -> None:
    maps = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(5))
    one, other = described(maps), described(maps * 7)

    assert torch.allclose(one[:, :-1], other[:, :-1], atol=1e-4)
    assert torch.allclose(other[:, -1] - one[:, -1], torch.full((4,), math.log(7)), atol=1e-4)


def test_the_lower_bound_is_that_of_clopper_and_pearson() -> None:
    bounds = lower_bounds(100, 0.001)

    assert float(bounds[0]) == 0
    assert float(bounds[100]) == pytest.approx(0.001 ** (1 / 100))
    for k in (1, 50, 99):
        assert binom.sf(k - 1, 100, float(bounds[k])) == pytest.approx(0.001)


def test_a_map_of_nothing_is_described_in_numbers() -> None:
    """A constant image has no part that matters more than another."""
    assert bool(described(torch.zeros(2, 1, 4, 4)).isfinite().all())
