"""Regressions find the one solution that there is, also where no weight may be negative."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detectors.regression import logistic

STRENGTH = 0.5


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_no_weight_below_zero_and_no_better_weights(seed: int) -> None:
    """The conditions of Karush, Kuhn and Tucker: no slope but at 0, and there none that would lead down."""
    draws = torch.Generator().manual_seed(seed)
    inputs = torch.randn(80, 6, generator=draws, dtype=torch.float64)
    inputs[:, 5] = inputs[:, 0] + 0.01 * inputs[:, 5]  # two that say nearly the same
    target = (inputs @ torch.randn(6, generator=draws, dtype=torch.float64) > 0.3).double()
    importance = torch.rand(80, generator=draws, dtype=torch.float64) + 0.1

    weights = logistic(inputs, target, importance, strength=STRENGTH, rising=True)

    chance = torch.sigmoid(inputs @ weights[:-1] + weights[-1])
    wrong = STRENGTH * importance * (chance - target)
    slope = inputs.T @ wrong + weights[:-1]
    assert bool((weights[:-1] >= 0).all())
    assert bool((slope[weights[:-1] > 0].abs() < 1e-5).all())
    assert bool((slope[weights[:-1] == 0] > -1e-5).all())
    assert abs(float(wrong.sum())) < 1e-5
