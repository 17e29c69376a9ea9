"""p-values keep their promises: at most 1, monotone, super-uniform on clean scans."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, binom

from detectors.calibration import (
    ConformalCalibration,
    Guarantee,
    TailCalibration,
    drawn_on,
    fewest,
    smallest,
    table,
    tail_of,
)
from detectors.errors import InputError, NotFittedError

FPRS = st.sampled_from([0.005, 0.01, 0.02, 0.05, 0.1])


@settings(deadline=None, max_examples=60)
@given(n=st.integers(100, 1500), seed=st.integers(0, 10_000), fpr=FPRS)
def test_conformal_p_values_are_at_most_one_and_fall_with_the_statistic(n: int, seed: int, fpr: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(n, generator=generator).round(decimals=int(seed % 4))
    if n < fewest(fpr, Guarantee.MARGINAL):
        with pytest.raises(InputError, match="at least"):
            ConformalCalibration.fit(clean, fpr)
        return
    calibration = ConformalCalibration.fit(clean, fpr)

    p = calibration.p_value(torch.linspace(-6, 6, 200))

    assert float(p.max()) <= 1
    assert float(p.min()) > 0
    assert bool((p.diff() <= 0).all())


@settings(deadline=None, max_examples=60)
@given(n=st.integers(20, 3000), alpha=st.floats(0.001, 0.999), guarantee=st.sampled_from(list(Guarantee)))
def test_conformal_p_values_are_super_uniform_on_average(n: int, alpha: float, guarantee: Guarantee) -> None:
    """A new clean statistic falls with equal chance into each of the n + 1 gaps between the calibrated ones."""
    chance = float((table(n, guarantee) <= alpha).sum()) / (n + 1)

    assert chance <= alpha + 1e-12


@settings(deadline=None, max_examples=60)
@given(n=st.integers(299, 5000), fpr=FPRS)
def test_the_confident_rule_fails_for_at_most_one_calibration_set_in_twenty(n: int, fpr: float) -> None:
    """Flagging at c or fewer clean statistics above has a true rate that is Beta(c + 1, n - c) over calibrations."""
    flagged = int((table(n, Guarantee.CONFIDENT) <= fpr).sum())
    if flagged == 0:
        assert n < fewest(fpr, Guarantee.CONFIDENT)
        return

    assert 1 - beta.cdf(fpr, flagged, n - flagged + 1) <= 0.05 + 1e-9


def test_the_confident_p_value_is_the_upper_end_of_clopper_and_pearson() -> None:
    n, c = 400, 7
    p = float(table(n, Guarantee.CONFIDENT)[c])

    assert binom.cdf(c, n, p) == pytest.approx(0.05, abs=1e-9)


@pytest.mark.parametrize(
    ("n", "guarantee"), [(99, Guarantee.MARGINAL), (298, Guarantee.MARGINAL), (299, Guarantee.CONFIDENT)]
)
def test_the_guarantee_follows_from_the_number_of_scans(n: int, guarantee: Guarantee) -> None:
    calibration = ConformalCalibration.fit(torch.arange(n).float(), 0.01)

    assert calibration.guarantee is guarantee
    assert float(calibration.p_value(torch.tensor([1e9]))) <= 0.01


def test_too_few_scans_are_refused_with_the_number_that_would_do() -> None:
    with pytest.raises(InputError, match=r"98 clean scans .* at least 99 are needed, 299 for 95 % confidence"):
        ConformalCalibration.fit(torch.arange(98).float(), 0.01)


@pytest.mark.parametrize("n", [20, 94, 400])
def test_the_tail_beyond_is_exact_where_clean_scans_are_exponential(n: int) -> None:
    """On average over calibration sets, as conformal p-values are: neither too small nor needlessly large."""
    alpha, sets = 0.025, 4000
    drawn = -torch.rand(sets, n, generator=torch.Generator().manual_seed(n), dtype=torch.float64).log()
    chances = []
    for clean in drawn.sort(1).values:
        tail = tail_of(clean)
        k, chance, over, excesses = tail.tolist()
        if not k:  # the loudest is rare: once in a hundred sets, where no p-value is drawn on
            chances.append(0.0)
            continue
        as_loud = over + excesses * ((chance / alpha) ** (1 / k) - 1)
        assert float(drawn_on(torch.tensor(as_loud), tail)) == pytest.approx(alpha, rel=1e-3)
        chances.append(math.exp(-as_loud))  # of a clean scan to be as loud

    assert n < 40 or 0.004 <= np.mean(np.array(chances) == 0) <= 0.017
    doubt = 4 * float(np.std(chances)) / math.sqrt(sets)
    assert 0.98 * alpha - doubt <= float(np.mean(chances)) <= alpha + doubt


def test_ranks_count_up_to_the_loudest_clean_scan_and_the_tail_never_says_more_than_they() -> None:
    clean = (-torch.rand(500, generator=torch.Generator().manual_seed(3)).log()).sort().values
    calibration = ConformalCalibration.fit(clean, 0.01)
    further = float(calibration.threshold(0.01)) + torch.tensor([3.0, 5.0, 20.0, 1e30, math.inf])

    louder = calibration.p_value(further, beyond=True)

    assert torch.equal(calibration.p_value(clean, beyond=True).flip(0), table(500, Guarantee.CONFIDENT)[1:])
    assert bool((calibration.p_value(further) == smallest(500, Guarantee.CONFIDENT)).all())
    assert float(louder[0]) <= smallest(500, Guarantee.CONFIDENT)
    assert bool((louder[:3].diff() < 0).all())
    assert 0 < float(louder[-1]) <= float(louder[-2]) < 1e-30


@pytest.mark.parametrize(
    "clean",
    [
        [1.0],  # none beyond it
        [3.0] * 40,
        [0.5] * 1199 + [0.6],
        [0.0] * 1100 + [0.125] * 97 + [0.25] * 3,  # votes
        [*torch.linspace(0, 3, 399).tolist(), 60.0],  # one that does not belong
    ],
)
def test_where_clean_scans_are_not_exponential_p_values_end_with_the_ranks(clean: list[float]) -> None:
    ranks = table(len(clean), Guarantee.MARGINAL)
    calibration = ConformalCalibration(torch.tensor(clean), ranks, Guarantee.MARGINAL)
    louder = calibration.p_value(torch.tensor([max(clean) + 0.1, 1e9, math.inf]), beyond=True)
    assert louder.tolist() == pytest.approx([1 / (len(clean) + 1)] * 3)


def test_what_is_not_a_number_gets_no_p_value() -> None:
    calibration = ConformalCalibration.fit(torch.arange(300).float(), 0.01)
    with pytest.raises(InputError, match="not a number"):
        calibration.p_value(torch.tensor([float("nan")]))
    with pytest.raises(InputError, match="not finite"):
        ConformalCalibration.fit(torch.tensor([float("inf")] * 300), 0.01)


def test_a_table_of_nothing_or_that_is_not_sorted_is_refused() -> None:
    with pytest.raises(NotFittedError):
        ConformalCalibration(torch.tensor([]), torch.tensor([1.0]).double(), Guarantee.MARGINAL)
    with pytest.raises(NotFittedError, match="not finite"):
        ConformalCalibration(torch.tensor([-math.inf]), torch.tensor([0.5, 1.0]).double(), Guarantee.MARGINAL)
    with pytest.raises(NotFittedError):
        ConformalCalibration(torch.tensor([2.0, 1.0]), torch.tensor([0.1, 0.2, 1.0]).double(), Guarantee.MARGINAL)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(20, 600), seed=st.integers(0, 10_000), scale=st.floats(1e-3, 1e3))
def test_tail_p_values_rise_strictly_beyond_the_clean_scores(n: int, seed: int, scale: float) -> None:
    clean = torch.randn(n, generator=torch.Generator().manual_seed(seed)) * scale
    calibration = TailCalibration.fit(clean)
    beyond = clean.max() + scale * torch.linspace(0.5, 5, 10)

    surprise = calibration.surprise(torch.cat([clean.sort().values, beyond]))
    p = calibration.p_value(clean)

    assert bool((surprise.diff() >= -1e-5).all())
    assert bool((calibration.surprise(beyond).diff() > 0).all())
    assert 0 < float(p.min()) <= float(p.max()) <= 1


def test_the_tail_has_a_gradient() -> None:
    calibration = TailCalibration.fit(torch.randn(200, generator=torch.Generator().manual_seed(0)))
    scores = torch.tensor([0.1, 1.0, 4.0], requires_grad=True)

    calibration.surprise(scores).sum().backward()

    assert scores.grad is not None
    assert bool((scores.grad > 0).all())


def test_calibrations_survive_their_state() -> None:
    scores = torch.randn(300, generator=torch.Generator().manual_seed(1))
    tail, conformal = TailCalibration.fit(scores), ConformalCalibration.fit(scores, 0.01)
    some = torch.linspace(-3, 6, 50)

    assert torch.equal(TailCalibration.from_state(tail.state()).surprise(some), tail.surprise(some))
    again = ConformalCalibration.from_state(conformal.state())
    assert torch.equal(again.p_value(some), conformal.p_value(some))
    assert again.guarantee is conformal.guarantee
