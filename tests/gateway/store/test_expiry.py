"""Time takes what was decided about, on record, and nothing else unless it is told to."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from gateway.errors import UpstreamError
from gateway.review import Person
from gateway.scan import Source
from gateway.settings.review import ReviewConfig
from gateway.store.held import EXAMINATIONS_MAX

ONE = ReviewConfig(four_eyes=False, decided_days_max=30.0)
ANN = Person("ann", "an artefact of the table")


def test_what_was_decided_about_goes_after_its_days_on_record(house):
    for act in (house.release, lambda identity: house.review.confirm(identity, ANN)):
        act(house.hold(f"a {act}".encode()))
    house.now += timedelta(days=29)
    assert house.review.expire() == 0
    house.now += timedelta(days=2)
    house.sink.commits_left = 0
    assert (house.review.expire(), len(house.quarantine.ids())) == (0, 2)
    house.sink.commits_left = float("inf")
    assert (house.review.expire(), house.quarantine.ids()) == (2, ())
    assert sorted(record["state"] for record in house.records()[-2:]) == ["confirmed", "released"]
    assert list((house.root / "q").iterdir()) == []
    assert house.quarantine._used == 0
    assert house.value("scanward_quarantine_acts_total", act="expired") == 2


def test_a_released_scan_is_answered_as_before_after_it_went(house):
    reply = house.release(house.hold()).reply
    house.now += timedelta(days=31)
    assert house.review.expire() == 1
    assert house.protect() == reply


def test_what_nobody_decided_about_stays(house):
    identity = house.hold()
    house.now += timedelta(days=3650)
    assert house.review.expire() == 0
    assert house.value("scanward_quarantine_oldest_seconds") == 3650 * 86400
    assert b"".join(house.quarantine.read(identity)) == b"a scan"


def test_it_is_given_up_only_by_an_unsafe_setting_and_taken_for_new_if_it_comes_again(house):
    house.serve(ONE.model_copy(update={"unsafe_undecided_days_max": 90.0}))
    house.hold()
    house.now += timedelta(days=91)
    assert (house.review.expire(), house.quarantine.ids()) == (1, ())
    assert house.records()[-1]["state"] == "held"
    assert house.value("scanward_quarantine_acts_total", act="given_up") == 1
    assert b"".join(house.quarantine.read(house.hold())) == b"a scan"


def test_of_many_senders_none_is_told_that_it_is_held_once_it_is_gone(house):
    """A case remembers some of its examinations, the ledger all of them."""
    house.serve(ONE.model_copy(update={"unsafe_undecided_days_max": 90.0}))
    senders = [Source(f"ct-{number}") for number in range(EXAMINATIONS_MAX + 2)]
    for sender in senders:
        house.hold(source=sender)
    house.now += timedelta(days=91)
    assert house.review.expire() == 1
    assert b"".join(house.quarantine.read(house.hold(source=senders[1]))) == b"a scan"


def test_what_was_released_and_is_not_answered_stays(house):
    house.model.fails = True
    with pytest.raises(UpstreamError):
        house.release(house.hold())
    house.now += timedelta(days=31)
    assert house.review.expire() == 0


def test_a_scan_that_was_just_held_again_is_not_removed(house):
    before = house.quarantine.show(house.hold())
    house.hold(source=Source("another"))
    assert not house.quarantine.remove(before)
    assert b"".join(house.quarantine.read(before.id)) == b"a scan"


def test_what_waits_and_what_was_done_is_counted(house):
    first, second = house.hold(b"a one"), house.hold(b"a two")
    house.now += timedelta(hours=1)
    assert house.value("scanward_quarantine_held") == 2
    house.release(first)
    house.review.confirm(second, ANN)
    assert house.value("scanward_quarantine_held") == 0
    assert np.isnan(house.value("scanward_quarantine_oldest_seconds"))
    assert house.value("scanward_quarantine_bytes") == house.quarantine._used
    for act in ("released", "confirmed"):
        assert house.value("scanward_quarantine_acts_total", act=act) == 1


def test_a_case_that_cannot_be_read_hides_no_other_and_stops_no_start(house):
    bad, good = house.hold(b"a one"), house.hold(b"a two")
    (house.root / "q" / f"{bad}.case").write_bytes(b"damaged")
    house.reopen()
    assert [held.id for held in house.review.list()] == [good]
    assert house.value("scanward_quarantine_held") == 2
