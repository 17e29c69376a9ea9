"""Each caller uses up its own share, gets it back with time, and leaves the others theirs."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from gateway.callers.throttle import Throttle
from gateway.errors import Overloaded
from gateway.scan import ANONYMOUS, Source
from gateway.settings.coherence import DEFAULT
from gateway.settings.limits import LimitsConfig

LIMITS = LimitsConfig(
    scans_per_s=2.0, scans_burst=4, bytes_per_s=100.0, bytes_burst=1000,
    holds_per_hour=3600.0, holds_burst=2, calls_share=0.5, spool_share=0.5,
)  # fmt: skip
CT, MR = Source("ct"), Source("mr")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def throttle(clock: Clock) -> Throttle:
    return Throttle({DEFAULT: LIMITS}, threads=8, clock=clock)


def wait(throttle: Throttle, source: Source = CT) -> float:
    """Seconds that the caller is told to wait; 0 where it may send."""
    try:
        throttle.admit(source)
    except Overloaded as error:
        return error.retry_after_s
    return 0.0


def test_a_burst_of_scans_then_the_rate(throttle: Throttle, clock: Clock) -> None:
    for _ in range(4):
        throttle.scan(CT, 1)
    with pytest.raises(Overloaded, match="too many scans"):
        throttle.scan(CT, 1)
    assert wait(throttle) == pytest.approx(0.5)
    clock.now += 0.5
    throttle.scan(CT, 1)


def test_who_waits_as_long_as_it_was_told_may_send(throttle: Throttle, clock: Clock) -> None:
    throttle.scan(CT, 5000)
    clock.now += wait(throttle) + 1e-6
    throttle.scan(CT, 1)


def test_an_object_over_the_burst_is_taken_and_paid_for_afterwards(throttle: Throttle) -> None:
    throttle.scan(CT, 3000)
    assert wait(throttle) == pytest.approx(20.0)  # (3000 - 1000) bytes at 100 a second


def test_held_scans_cost_more_than_others(throttle: Throttle) -> None:
    for _ in range(3):
        throttle.held(CT)
    with pytest.raises(Overloaded, match="too many held scans"):
        throttle.scan(CT, 1)
    assert wait(throttle) == pytest.approx(1.0)


def test_one_caller_uses_up_nothing_of_another(throttle: Throttle) -> None:
    throttle.scan(CT, 10**9)
    assert wait(throttle, CT) > 0.0
    assert wait(throttle, MR) == 0.0


def test_two_people_of_one_source_have_an_account_each(throttle: Throttle) -> None:
    throttle.scan(Source("idp", person="a"), 10**9)
    assert wait(throttle, Source("idp", person="b")) == 0.0


def test_a_source_may_have_limits_of_its_own(clock: Clock) -> None:
    throttle = Throttle({DEFAULT: LIMITS, "ct": LIMITS.model_copy(update={"scans_burst": 1})}, threads=8, clock=clock)
    throttle.scan(CT, 1)
    throttle.scan(MR, 1)
    assert (wait(throttle, CT) > 0.0, wait(throttle, MR)) == (True, 0.0)


def test_a_reload_forgives_nobody(throttle: Throttle) -> None:
    throttle.scan(CT, 3000)
    throttle.configure({DEFAULT: LIMITS.model_copy(update={"bytes_per_s": 200.0})})
    assert wait(throttle) == pytest.approx(10.0)


def test_calls_of_one_caller_occupy_its_share_of_the_threads_alone(throttle: Throttle) -> None:
    with ExitStack() as calls:
        for _ in range(4):
            calls.enter_context(throttle.call(CT))
        with pytest.raises(Overloaded), throttle.call(CT):
            pass
        with throttle.call(MR):
            pass
    with throttle.call(CT):
        pass


def test_strangers_together_have_few_threads(throttle: Throttle) -> None:
    stranger = Source(ANONYMOUS)
    with throttle.call(stranger), throttle.call(stranger), pytest.raises(Overloaded), throttle.call(stranger):
        pass


def test_accounts_are_bounded_and_those_in_use_stay(throttle: Throttle) -> None:
    with throttle.call(CT):
        for number in range(5000):
            throttle.scan(Source("idp", person=str(number)), 1)
        assert len(throttle._accounts) == 4096
        assert "ct" in throttle._accounts
