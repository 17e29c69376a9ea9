"""The breaker opens after failures in a row, lets one call probe, and does not take a hurried caller for a failure."""

from __future__ import annotations

import pytest

from gateway.errors import UpstreamError
from gateway.upstreams.breaker import Breaker


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(failures_max=2, pause_s=5.0, clock=clock)


def fail(breaker: Breaker) -> None:
    breaker.begin()
    breaker.failed()


def refused(breaker: Breaker) -> float | None:
    with pytest.raises(UpstreamError) as caught:
        breaker.begin()
    return caught.value.retry_after_s


def test_it_opens_after_so_many_failures_in_a_row_and_says_when_to_come_back(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    assert breaker.closed
    fail(breaker)
    assert not breaker.closed
    clock.now += 1.0
    assert refused(breaker) == 4.0


def test_a_success_between_failures_keeps_it_closed(breaker: Breaker) -> None:
    for _ in range(5):
        fail(breaker)
        breaker.begin()
        breaker.succeeded()
    assert breaker.closed


def test_after_the_pause_one_call_probes_and_the_others_wait(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    fail(breaker)
    clock.now += 5.0
    breaker.begin()
    assert refused(breaker) == 5.0
    breaker.succeeded()
    assert breaker.closed


def test_a_failed_probe_opens_it_again(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    fail(breaker)
    clock.now += 5.0
    fail(breaker)
    assert refused(breaker) == 5.0


def test_a_probe_that_says_nothing_leaves_the_place_to_the_next(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    fail(breaker)
    clock.now += 5.0
    breaker.begin()
    breaker.abandoned()
    breaker.begin()
    breaker.succeeded()
    assert breaker.closed
