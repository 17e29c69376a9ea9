"""The measurement of whole studies counts what it says it counts."""

from __future__ import annotations

import numpy as np
import pytest

from lab.study import Pool, _measured

FLOOR = 0.0025


@pytest.fixture
def clean() -> Pool:
    return Pool((np.arange(2000) + 1) / 2001, FLOOR)


def test_clean_studies_alarm_slice_by_slice_and_hardly_ever_together(clean: Pool) -> None:
    row = _measured(np.random.default_rng(1), clean, None, "clean", 500, 200)
    assert (row.studies, row.named) == (200, None)
    assert row.any_slice > 190
    assert row.ranks == 0
    assert row.fused <= 20
    assert row.framed <= 8


def test_one_attacked_slice_is_found_by_the_tail_and_not_by_ranks(clean: Pool) -> None:
    row = _measured(np.random.default_rng(2), clean, Pool(np.array([1e-6, 1e-9]), FLOOR), "attacked", 500, 50)
    assert (row.ranks, row.fused, row.named, row.framed) == (0, 50, 50, 50)


def test_the_pool_is_left_as_it_was(clean: Pool) -> None:
    before = clean.p_values.copy()
    _measured(np.random.default_rng(3), clean, Pool(np.array([1e-6]), FLOOR), "attacked", 100, 20)
    assert np.array_equal(clean.p_values, before)
