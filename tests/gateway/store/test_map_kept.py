"""The picture of a held scan is kept as the scan is: encrypted, bounded, and no longer than what it speaks of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.errors import NotHeld, Overloaded
from gateway.finding import GatewayReason
from gateway.store.held import Held
from gateway.store.kek import RawKek, VaultError
from gateway.store.quarantine import Quarantine
from gateway.verdict import Disposition, Verdict

HELD = Verdict(Disposition.QUARANTINE, (GatewayReason.SUSPECT,))
PICTURE = b"\x89PNG" + bytes(range(256)) * 40


@pytest.fixture
def open_quarantine(tmp_path: Path, metrics) -> Iterator[Callable[..., Quarantine]]:
    opened: list[Quarantine] = []

    def open_(*, bytes_max: int = 1 << 20) -> Quarantine:
        for earlier in opened:
            earlier.close()
        opened[:] = [
            Quarantine(tmp_path / "q", RawKek(bytes(32)), name_key=bytes(32), bytes_max=bytes_max, metrics=metrics)
        ]
        return opened[0]

    yield open_
    for quarantine in opened:
        quarantine.close()


def held_in(quarantine: Quarantine, case) -> Held:
    return quarantine.show(quarantine.hold(case, HELD))


def test_a_picture_outlives_a_restart_and_nobody_without_the_key_sees_it(open_quarantine, make_case, tmp_path):
    quarantine = open_quarantine()
    held = held_in(quarantine, make_case())
    assert quarantine.map_of(held) is None
    quarantine.keep_map(held, PICTURE)
    again = open_quarantine()
    assert again.map_of(again.show(held.id)) == PICTURE
    assert all(PICTURE[:64] not in file.read_bytes() for file in (tmp_path / "q").iterdir())


def test_a_picture_of_one_scan_is_not_one_of_another(open_quarantine, make_case, tmp_path):
    quarantine = open_quarantine()
    one, other = held_in(quarantine, make_case(b"one")), held_in(quarantine, make_case(b"other"))
    quarantine.keep_map(one, PICTURE)
    (tmp_path / "q" / f"{one.id}.map").rename(tmp_path / "q" / f"{other.id}.map")
    with pytest.raises(VaultError):
        quarantine.map_of(other)


def test_a_picture_goes_with_its_scan_and_its_room_is_free_again(open_quarantine, make_case, metrics):
    quarantine = open_quarantine()
    held = held_in(quarantine, make_case())
    without = metrics.registry.get_sample_value("scanward_quarantine_bytes")
    quarantine.keep_map(held, PICTURE)
    assert metrics.registry.get_sample_value("scanward_quarantine_bytes") > without
    assert quarantine.remove(held)
    assert metrics.registry.get_sample_value("scanward_quarantine_bytes") == 0
    with pytest.raises(NotHeld):
        quarantine.keep_map(held, PICTURE)


def test_a_later_examination_makes_the_picture_old(open_quarantine, make_case, metrics):
    quarantine = open_quarantine()
    case = make_case()
    held = held_in(quarantine, case)
    quarantine.keep_map(held, PICTURE)
    later = held_in(quarantine, replace(case, digests=replace(case.digests, model="99" * 32)))
    assert quarantine.map_of(later) is None
    with pytest.raises(NotHeld):
        quarantine.keep_map(held, PICTURE)
    used = metrics.registry.get_sample_value("scanward_quarantine_bytes")
    open_quarantine()
    assert metrics.registry.get_sample_value("scanward_quarantine_bytes") == used


def test_a_picture_takes_no_room_that_there_is_not(open_quarantine, make_case):
    quarantine = open_quarantine(bytes_max=3 * 4096)
    held = held_in(quarantine, make_case())
    with pytest.raises(Overloaded, match="full"):
        quarantine.keep_map(held, PICTURE)
    assert quarantine.map_of(held) is None


def test_a_picture_without_its_scan_is_thrown_away_at_a_start(open_quarantine, make_case, tmp_path):
    quarantine = open_quarantine()
    held = held_in(quarantine, make_case())
    quarantine.keep_map(held, PICTURE)
    (tmp_path / "q" / f"{held.id}.case").unlink()
    open_quarantine()
    assert list((tmp_path / "q").iterdir()) == []
