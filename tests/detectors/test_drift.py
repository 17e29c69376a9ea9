"""The bets that watch for drift are fair while nothing changes, and win soon after something does."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from detectors.calibration import ConformalCalibration
from detectors.drift import CALM, POWERS, SUSPICIOUS, Bets, Drift, Family, fair
from detectors.errors import InputError

SCANS = 400
BETWEEN = 500.0


def calibration(rng: np.random.Generator, scans: int = SCANS) -> ConformalCalibration:
    return ConformalCalibration.fit(torch.from_numpy(rng.standard_normal(scans)), 0.01)


def stream(fitted: ConformalCalibration, statistics: NDArray[np.float64]) -> list[float]:
    """p-values as the gateway reads them: through text."""
    return [float(repr(p)) for p in fitted.p_value(torch.from_numpy(statistics)).tolist()]


def alarms(family: Family, p_values: list[float]) -> list[tuple[int, Drift]]:
    """After how many scans which alarm was raised, all detectors being given the same p-value."""
    sums, found = family.start(), []
    for scan, p_value in enumerate(p_values, 1):
        sums, drifts = family.after(sums, dict.fromkeys(family.detectors, p_value))
        found += [(scan, drift) for drift in drifts]
    return found


@settings(deadline=None, max_examples=30)
@given(n=st.integers(99, 2000), seed=st.integers(0, 10_000))
def test_no_bet_wins_on_uniform_p_values_or_larger_ones(n: int, seed: int) -> None:
    """The suspicious half also under stochastically larger ones: what is held too rarely is no harm."""
    gains = fair(n, 0.95)
    shares = np.random.default_rng(seed).exponential(size=n + 1).cumsum()
    calmer = np.sort(shares / shares.sum()) ** 3  # distribution function that lies below the uniform one
    chances = np.diff(np.minimum(calmer, np.arange(1, n + 2) / (n + 1)), prepend=0.0)
    chances[-1] += 1.0 - chances.sum()

    assert gains.shape == (2 * len(POWERS), n + 1)
    assert bool((gains.mean(axis=1) <= 1.0 + 1e-9).all())
    assert bool((gains[: len(POWERS)] @ chances <= 1.0 + 1e-9).all())
    assert bool((np.diff(gains[: len(POWERS)], axis=1) <= 0).all())


def test_the_capital_keeps_villes_inequality_over_many_streams() -> None:
    """Among streams that never change, at most one in a hundred has a capital that ever reaches a hundred."""
    rng = np.random.default_rng(0)
    crossed = 0
    for _ in range(1000):
        fitted = calibration(rng)
        bets = Bets(fitted)
        gains = np.stack([bets.gains(p) for p in stream(fitted, rng.standard_normal(300))])
        crossed += int(gains.cumprod(axis=0).mean(axis=1).max() >= 100.0)

    assert crossed <= 10


def test_false_alarms_are_at_least_as_far_apart_as_was_asked_for() -> None:
    """Whatever is drawn for the calibration, and however long the stream: the reference does not move."""
    rng = np.random.default_rng(1)
    scans, found = 0, 0
    for _ in range(60):
        fitted = calibration(rng)
        family = Family({"a": fitted}, scans_between_false_alarms=BETWEEN)
        found += len(alarms(family, stream(fitted, rng.standard_normal(2000))))
        scans += 2000

    assert found <= scans / BETWEEN


def test_with_one_calibration_in_twenty_at_most_is_the_mean_gain_above_one() -> None:
    """The chances of the gaps between calibration scans are Dirichlet(1, ..., 1)."""
    gains = fair(SCANS, 0.95)
    chances = np.random.default_rng(2).dirichlet(np.ones(SCANS + 1), 4000)

    unfair = ((chances @ gains.T) > 1.0).any(axis=1)

    assert unfair.mean() <= 0.06


@pytest.mark.parametrize(
    ("shift", "direction", "scans_max"), [(2.0, SUSPICIOUS, 40), (-2.0, CALM, 40), (1.0, SUSPICIOUS, 130)]
)
def test_a_shift_is_told_soon_and_told_again(shift: float, direction: str, scans_max: int) -> None:
    """Also after a long calm, and for 9 detectors with 100,000 scans between false alarms of any."""
    rng = np.random.default_rng(3)
    fitted = calibration(rng)
    family = Family({str(k): fitted for k in range(9)}, scans_between_false_alarms=100_000)
    calm, shifted = rng.standard_normal(2000), rng.standard_normal(400) + shift

    found = alarms(family, stream(fitted, np.concatenate([calm, shifted])))

    first = found[0][0] - len(calm)
    assert 0 < first <= scans_max
    assert {drift.direction for _, drift in found} == {direction}
    assert all(drift.evidence >= drift.threshold for _, drift in found)
    assert sum(drift.detector == "0" for _, drift in found) >= 2


def test_what_is_held_after_a_restart_goes_on_as_if_nothing_had_happened() -> None:
    rng = np.random.default_rng(4)
    fitted = calibration(rng)
    family = Family({"a": fitted}, scans_between_false_alarms=BETWEEN)
    sums = family.start()
    for p_value in stream(fitted, rng.standard_normal(50)):
        sums, _ = family.after(sums, {"a": p_value})

    again = {name: np.array(values.tolist()) for name, values in sums.items()}

    assert family.after(again, {"a": 0.02})[0]["a"].tolist() == family.after(sums, {"a": 0.02})[0]["a"].tolist()


def test_scans_that_share_their_statistic_are_no_drift() -> None:
    """A detector that gives half of all scans exactly nought is not calm, it is rounded."""
    rng = np.random.default_rng(5)
    fitted = ConformalCalibration.fit(torch.from_numpy(rng.standard_normal(SCANS)).clamp_min(0), 0.01)
    family = Family({"a": fitted}, scans_between_false_alarms=BETWEEN)

    assert alarms(family, stream(fitted, np.maximum(rng.standard_normal(3000), 0))) == []


def test_places_are_read_back_from_p_values_exactly() -> None:
    fitted = calibration(np.random.default_rng(6))
    statistics = torch.linspace(-4, 4, 999, dtype=torch.float64)
    above = [int((fitted.state()["statistics"] >= value).sum()) for value in statistics]

    assert [fitted.place(p) for p in stream(fitted, statistics.numpy())] == above


def test_a_threshold_is_the_largest_statistic_that_is_not_flagged() -> None:
    fitted = calibration(np.random.default_rng(7))

    edge = fitted.threshold(0.05)

    assert float(fitted.p_value(torch.tensor([edge], dtype=torch.float64))) > 0.05
    assert float(fitted.p_value(torch.tensor([edge + 1e-9], dtype=torch.float64))) <= 0.05
    with pytest.raises(InputError, match="flag nothing"):
        fitted.threshold(1e-6)


def test_a_watch_on_nothing_is_refused() -> None:
    with pytest.raises(InputError):
        Family({}, scans_between_false_alarms=BETWEEN)
