"""A step keeps its budget, its range and its direction."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.perturb import ascend, step


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), eps=st.floats(0.0, 0.5), size=st.floats(0.0, 1.0))
def test_a_step_never_leaves_the_ball_or_the_range(seed: int, eps: float, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    origin = torch.rand(2, 1, 4, 4, generator=generator)
    gradient = torch.randn(2, 1, 4, 4, generator=generator)

    moved = step(origin, gradient, origin, size=size, eps=eps, low=0.0, high=1.0)

    assert (moved - origin).abs().max() <= eps + 1e-6
    assert moved.min() >= 0.0
    assert moved.max() <= 1.0


def test_budgets_may_differ_from_image_to_image() -> None:
    origin = torch.full((2, 1, 3, 3), 0.5)
    eps = torch.tensor([0.1, 0.2]).view(2, 1, 1, 1)

    moved = step(origin, torch.ones_like(origin), origin, size=1.0, eps=eps, low=0.0, high=1.0)

    assert torch.allclose(moved[0], torch.tensor(0.6))
    assert torch.allclose(moved[1], torch.tensor(0.7))


@pytest.mark.parametrize("start", [None, 3])
def test_ascending_a_linear_loss_reaches_the_corner_of_the_ball(start: int | None) -> None:
    weights = torch.tensor([1.0, -1.0, 2.0, -3.0]).view(1, 1, 2, 2)
    origin = torch.full((3, 1, 2, 2), 0.5)
    generator = None if start is None else torch.Generator().manual_seed(start)

    attacked = ascend(
        origin, lambda x: (x * weights).sum(), eps=0.1, steps=8, size=0.05, low=0.0, high=1.0, generator=generator
    )

    assert torch.allclose(attacked, origin + 0.1 * weights.sign(), atol=1e-6)


def test_no_gradient_is_left_on_the_result() -> None:
    origin = torch.rand(1, 1, 2, 2)

    attacked = ascend(origin, lambda x: (x**2).sum(), eps=0.1, steps=1, size=0.1, low=0.0, high=1.0, generator=None)

    assert not attacked.requires_grad
