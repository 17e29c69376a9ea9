"""Batches close when they are full or old enough, serve every model in turn, and drop who has gone."""

from __future__ import annotations

import pytest

from gateway.deadline import Deadline
from gateway.engine.batcher import Batcher, Entry
from gateway.errors import Overloaded

LATER = Deadline(float("inf"))
GONE = Deadline(0.0)


def entry(name: str, at: float, *, images: int = 1, deadline: Deadline = LATER, caller: str = "") -> Entry[str]:
    """A submission whose model is the first letter of its name."""
    return Entry(name[0], images, deadline, at, name, caller)


def batcher(*entries: Entry[str], size_max: int = 4, wait_s_max: float = 1.0, queue_max: int = 100) -> Batcher[str]:
    made: Batcher[str] = Batcher(size_max=size_max, wait_s_max=wait_s_max, queue_max=queue_max)
    for each in entries:
        made.put(each)
    return made


def names(batch: list[Entry[str]]) -> list[str]:
    return [each.payload for each in batch]


def test_a_full_batch_goes_at_once() -> None:
    waiting = batcher(*(entry(f"a{i}", 0.0) for i in range(6)))
    assert names(waiting.take(0.0, idle=True)) == ["a0", "a1", "a2", "a3"]
    assert waiting.take(0.0, idle=True) == []
    assert waiting.depth == 2


def test_a_batch_that_is_not_full_waits_for_others_only_so_long() -> None:
    waiting = batcher(entry("a0", 10.0), entry("a1", 10.9))
    assert waiting.take(10.99, idle=True) == []
    assert waiting.due_at() == 11.0
    assert names(waiting.take(11.0, idle=True)) == ["a0", "a1"]
    assert waiting.due_at() is None


def test_behind_a_busy_worker_a_batch_stays_open_until_it_is_full() -> None:
    waiting = batcher(entry("a0", 0.0), entry("a1", 0.0), entry("a2", 0.0))
    assert waiting.take(100.0, idle=False) == []
    waiting.put(entry("a3", 100.0))
    assert names(waiting.take(100.0, idle=False)) == ["a0", "a1", "a2", "a3"]


def test_a_batch_holds_one_model_alone() -> None:
    waiting = batcher(entry("a0", 0.0), entry("b0", 0.1), entry("a1", 0.2))
    assert names(waiting.take(5.0, idle=True)) == ["a0", "a1"]
    assert names(waiting.take(5.0, idle=True)) == ["b0"]


def test_a_busy_model_starves_no_other() -> None:
    """The one scan of b goes as soon as it is the oldest, however full a's batches are."""
    waiting = batcher(
        *(entry(f"a{i}", 0.0) for i in range(4)), entry("b0", 0.5), *(entry(f"a{i}", 0.6) for i in range(8))
    )
    assert names(waiting.take(1.0, idle=False)) == ["a0", "a1", "a2", "a3"]
    assert waiting.take(1.2, idle=False) == []
    assert names(waiting.take(1.5, idle=True)) == ["b0"]
    assert len(waiting.take(1.5, idle=True)) == 4


def test_an_idle_worker_takes_a_full_batch_while_an_older_one_still_waits_for_company() -> None:
    waiting = batcher(entry("b0", 0.0), *(entry(f"a{i}", 0.1) for i in range(4)))
    assert len(waiting.take(0.2, idle=True)) == 4
    assert waiting.take(0.2, idle=True) == []
    assert names(waiting.take(1.0, idle=True)) == ["b0"]


def test_a_series_stays_together() -> None:
    waiting = batcher(entry("a0", 0.0, images=3), entry("a1", 0.0, images=2), entry("a2", 0.0, images=9))
    assert names(waiting.take(0.0, idle=True)) == ["a0"]
    assert names(waiting.take(0.0, idle=True)) == ["a1"]
    assert names(waiting.take(0.0, idle=True)) == ["a2"]


def test_who_has_gone_is_dropped_before_it_costs_anything() -> None:
    waiting = batcher(entry("a0", 0.0, deadline=GONE), entry("a1", 0.0), entry("a2", 0.0, deadline=GONE))
    assert names(waiting.take(1.0, idle=True)) == ["a1"]
    assert names(waiting.take_dropped()) == ["a0", "a2"]
    assert waiting.take_dropped() == []


def test_when_all_have_gone_the_next_model_is_served() -> None:
    waiting = batcher(entry("a0", 0.0, deadline=GONE), entry("b0", 0.1))
    assert names(waiting.take(2.0, idle=True)) == ["b0"]


def test_the_queue_is_bounded_by_those_who_still_wait() -> None:
    waiting = batcher(entry("a0", 0.0), entry("a1", 0.0, deadline=GONE), queue_max=2)
    waiting.put(entry("a2", 0.0))
    assert names(waiting.take_dropped()) == ["a1"]
    with pytest.raises(Overloaded):
        waiting.put(entry("b0", 0.0))
    assert names(waiting.take_all()) == ["a0", "a2"]
    assert waiting.depth == 0
    assert waiting.take(9.0, idle=True) == []


def test_a_slice_does_not_wait_for_a_whole_study() -> None:
    """The study was there first, and still gives every other place away."""
    waiting = batcher(
        *(entry(f"a-study{i}", 0.0, caller="ct") for i in range(50)),
        *(entry(f"a-slice{i}", 0.5, caller="mr") for i in range(3)),
    )
    assert names(waiting.take(1.0, idle=True)) == ["a-study0", "a-slice0", "a-study1", "a-slice1"]
    assert names(waiting.take(1.0, idle=True)) == ["a-study2", "a-slice2", "a-study3", "a-study4"]


def test_more_callers_than_places_are_all_served_in_turn() -> None:
    waiting = batcher(*(entry(f"a{caller}{i}", 0.0, caller=caller) for i in range(10) for caller in "stuvwxyz"))
    batches = [names(waiting.take(1.0, idle=True)) for _ in range(4)]
    assert sorted(name[1] for batch in batches[:2] for name in batch) == list("stuvwxyz")
    assert sorted(name[1] for batch in batches[2:] for name in batch) == list("stuvwxyz")


def test_the_order_of_one_caller_is_kept() -> None:
    waiting = batcher(*(entry(f"a{i}", float(i), caller="ct") for i in range(8)))
    assert [*names(waiting.take(9.0, idle=True)), *names(waiting.take(9.0, idle=True))] == [f"a{i}" for i in range(8)]
