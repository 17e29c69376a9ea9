"""One bad slice is found among 500, and 500 clean ones do not add up to an alarm."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from gateway.study.fusion import fuse

SLICES, STUDIES, RATE = 500, 2000, 0.05
DOUBT = 3.0 * math.sqrt(RATE * (1.0 - RATE) / STUDIES)
"""Three standard deviations of a rate that is exactly at its bound, over so many studies."""
LOUD = 5e-5
"""Of the one bad slice: half of what a slice of 500 may have at most, RATE / SLICES."""

p_values = st.lists(st.floats(min_value=0.0, max_value=1.0, exclude_min=True), min_size=1, max_size=60)


def independent(random: np.random.Generator) -> NDArray[np.float64]:
    return random.uniform(size=SLICES)


def neighbours(random: np.random.Generator) -> NDArray[np.float64]:
    """Each slice looks nearly as the one before it: a normal walk that forgets one part in twenty a slice."""
    steps = random.normal(size=SLICES)
    walk = np.empty(SLICES)
    walk[0] = steps[0]
    for index in range(1, SLICES):
        walk[index] = 0.95 * walk[index - 1] + math.sqrt(1.0 - 0.95**2) * steps[index]
    return _upper_tail(walk)


def one_patient(random: np.random.Generator) -> NDArray[np.float64]:
    """All slices share most of what makes them look odd."""
    shared, own = random.normal(), random.normal(size=SLICES)
    return _upper_tail(math.sqrt(0.9) * shared + math.sqrt(0.1) * own)


def alike(random: np.random.Generator) -> NDArray[np.float64]:
    return np.full(SLICES, random.uniform())


def one_calibration(random: np.random.Generator) -> NDArray[np.float64]:
    """Ranks among the same clean scans, as the detectors give them: never below 1 / 1201."""
    clean, fresh = np.sort(random.normal(size=1200)), random.normal(size=SLICES)
    at_least = len(clean) - np.searchsorted(clean, fresh, side="left")
    return (1.0 + at_least) / (len(clean) + 1.0)


def _upper_tail(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([0.5 * math.erfc(value / math.sqrt(2.0)) for value in values])


CLEAN = [independent, neighbours, one_patient, alike, one_calibration]


@pytest.mark.parametrize("draw", CLEAN)
def test_500_clean_slices_do_not_add_up_to_an_alarm(draw):
    random = np.random.default_rng(6)
    alarms = sum(fuse(draw(random).tolist()).p_value <= RATE for _ in range(STUDIES))
    assert alarms / STUDIES <= RATE + DOUBT


def test_each_slice_on_its_own_would_alarm_in_nearly_every_clean_study():
    """What the fusion is for."""
    random = np.random.default_rng(6)
    assert np.mean([independent(random).min() <= 0.01 for _ in range(STUDIES)]) > 0.98


@pytest.mark.parametrize("draw", CLEAN)
def test_one_bad_slice_is_found_in_500_and_it_is_the_one(draw):
    random = np.random.default_rng(7)
    for _ in range(200):
        slices = draw(random)
        bad = int(random.integers(SLICES))
        slices[bad] = LOUD
        fused = fuse(slices.tolist())
        assert fused.p_value <= RATE
        assert fused.adjusted[bad] <= RATE


@given(p_values)
def test_the_study_is_as_suspect_as_its_most_suspect_slice(values):
    fused = fuse(values)
    assert fused.p_value == min(fused.adjusted)
    assert all(raw <= adjusted <= 1.0 for raw, adjusted in zip(values, fused.adjusted, strict=True))


@given(p_values, st.data())
def test_a_slice_that_is_more_suspect_makes_no_other_less_so(values, data):
    index = data.draw(st.integers(0, len(values) - 1))
    lower = [*values]
    lower[index] = max(values[index] * data.draw(st.floats(0.01, 1.0)), 5e-324)
    before, after = fuse(values), fuse(lower)
    assert all(now <= then for now, then in zip(after.adjusted, before.adjusted, strict=True))


@given(p_values, st.randoms())
def test_the_order_of_slices_does_not_matter(values, random):
    places = list(range(len(values)))
    random.shuffle(places)
    shuffled = fuse([values[place] for place in places])
    straight = fuse(values)
    assert list(shuffled.adjusted) == [straight.adjusted[place] for place in places]


@given(st.floats(min_value=0.0, max_value=1.0, exclude_min=True))
def test_one_slice_alone_is_as_it_is(value):
    assert fuse([value]).adjusted == (value,)


def test_agrees_with_the_definition():
    """Benjamini and Hochberg's own example, n = 15: at 5 % the first four are rejected."""
    published = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528,
                 0.7590, 1.0000]  # fmt: skip
    assert [adjusted <= 0.05 for adjusted in fuse(published).adjusted] == [True] * 4 + [False] * 11


def test_nothing_comes_of_nothing_and_what_is_no_p_value_is_refused():
    assert fuse([]) is None
    for value in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="outside"):
            fuse([0.5, value])
