"""What waits to be handed on: kept through crashes, tried again while it helps, never lost, never in plain text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.errors import Overloaded, ScanError, UpstreamError
from gateway.store.custody import FACTS_BYTES_MAX, Custody, Parcel
from gateway.store.kek import RawKek, VaultError
from gateway.store.outbox import Outbox
from gateway.telemetry.metrics import Metrics

KEK = RawKek(bytes(range(32)))
PATIENT = b"PATIENT^NAME" * 100


@pytest.fixture
def open_custody(tmp_path: Path) -> Iterator[Callable[..., Custody]]:
    opened: list[Custody] = []

    def open_(**limits: int) -> Custody:
        opened.append(
            Custody(tmp_path / "outbox", KEK, **{"bytes_max": 1 << 24, "objects_max": 100, **limits})  # type: ignore[arg-type]
        )
        return opened[-1]

    yield open_
    for custody in opened:
        custody.close()


class Taker:
    """Takes what it is handed, unless told to fail first."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self._lock = threading.Lock()
        self.taken: list[tuple[dict[str, str], bytes]] = []
        self.event = threading.Event()
        self.wanted = 1

    def __call__(self, parcel: Parcel) -> None:
        with self._lock:
            if self._failures:
                raise self._failures.pop(0)
            self.taken.append((dict(parcel.facts), b"".join(parcel.chunks())))
            if len(self.taken) >= self.wanted:
                self.event.set()


def outbox(custody: Custody, taker: Callable[[Parcel], None], metrics: Metrics, workers: int = 1) -> Outbox:
    return Outbox("out", custody, taker, workers=workers, metrics=metrics, retry_s=(0.001, 0.002))


def depth(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value("scanward_queue_depth", {"queue": name})


def test_an_object_is_handed_on_with_its_facts_and_bytes_and_then_gone(
    open_custody: Callable[..., Custody], metrics: Metrics, tmp_path: Path
) -> None:
    taker = Taker()
    line = outbox(open_custody(), taker, metrics)
    line.start()
    data = os.urandom(3 << 20)
    line.put(memoryview(data), {"route": "chest"}, key="a")
    assert taker.event.wait(30)
    line.close(30)
    assert taker.taken == [({"route": "chest"}, data)]
    assert list((tmp_path / "outbox").iterdir()) == []
    assert depth(metrics, "out") == 0


def test_nothing_on_disk_can_be_read_without_the_key(open_custody: Callable[..., Custody], tmp_path: Path) -> None:
    open_custody().put(memoryview(PATIENT), {"calling_ae": "SECRETAE"}, key="1.2.3.4")
    (file,) = (tmp_path / "outbox").iterdir()
    assert b"PATIENT" not in file.read_bytes()
    assert b"SECRETAE" not in file.read_bytes()
    assert "1.2.3.4" not in file.name
    assert file.stat().st_mode & 0o777 == 0o600


def test_the_order_of_arrival_and_the_content_survive_a_restart(open_custody: Callable[..., Custody]) -> None:
    first = open_custody()
    for number in range(5):
        first.put(memoryview(bytes([number])), {}, key=str(number))
    first.close()
    second = open_custody()
    assert [b"".join(second.parcel(identity).chunks()) for identity in second.waiting()] == [
        bytes([n]) for n in range(5)
    ]


def test_the_same_key_is_kept_once_while_it_waits(open_custody: Callable[..., Custody]) -> None:
    custody = open_custody()
    first, new = custody.put(memoryview(b"one"), {}, key="k")
    assert new
    assert custody.put(memoryview(b"one"), {}, key="k") == (first, False)
    custody.done(first)
    assert custody.put(memoryview(b"one"), {}, key="k")[1]


@pytest.mark.parametrize("limits", [{"bytes_max": 8192}, {"objects_max": 1}])
def test_a_full_custody_says_so_and_has_room_again_once_something_left(
    open_custody: Callable[..., Custody], limits: dict[str, int]
) -> None:
    custody = open_custody(**limits)
    first, _ = custody.put(memoryview(bytes(5000)), {}, key="a")
    with pytest.raises(Overloaded):
        custody.put(memoryview(bytes(5000)), {}, key="b")
    custody.done(first)
    custody.put(memoryview(bytes(5000)), {}, key="b")


def test_a_disk_that_fails_is_overload_and_leaves_nothing(open_custody: Callable[..., Custody], tmp_path: Path) -> None:
    custody = open_custody()
    (tmp_path / "outbox").rename(tmp_path / "away")
    with pytest.raises(Overloaded):
        custody.put(memoryview(b"scan"), {}, key="a")
    (tmp_path / "away").rename(tmp_path / "outbox")
    assert custody.waiting() == []
    custody.put(memoryview(b"scan"), {}, key="a")


def test_a_changed_file_is_not_handed_on(open_custody: Callable[..., Custody], tmp_path: Path) -> None:
    custody = open_custody()
    identity, _ = custody.put(memoryview(PATIENT), {}, key="a")
    (file,) = (tmp_path / "outbox").iterdir()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with pytest.raises(VaultError):
        b"".join(custody.parcel(identity).chunks())


def test_facts_are_bounded(open_custody: Callable[..., Custody]) -> None:
    with pytest.raises(ValueError, match="facts of"):
        open_custody().put(memoryview(b""), {"a": "x" * FACTS_BYTES_MAX}, key="a")


def test_a_failure_that_may_pass_is_tried_again(open_custody: Callable[..., Custody], metrics: Metrics) -> None:
    taker = Taker(UpstreamError("down"), OSError("reset"), UpstreamError("down"))
    line = outbox(open_custody(), taker, metrics)
    line.put(memoryview(b"scan"), {}, key="a")
    line.start()
    assert taker.event.wait(30)
    line.close(30)
    assert [data for _, data in taker.taken] == [b"scan"]


def test_a_failure_that_will_not_pass_puts_aside_until_the_next_start(
    open_custody: Callable[..., Custody], metrics: Metrics
) -> None:
    taker = Taker(ScanError("never"))
    line = outbox(open_custody(), taker, metrics)
    line.put(memoryview(b"disliked"), {}, key="a")
    line.put(memoryview(b"liked"), {}, key="b")
    line.start()
    assert taker.event.wait(30)
    line.close(30)
    assert [data for _, data in taker.taken] == [b"liked"]
    assert (depth(metrics, "out"), depth(metrics, "out-aside")) == (0, 1)

    again = Taker()
    line = outbox(open_custody(), again, metrics)
    line.start()
    assert again.event.wait(30)
    line.close(30)
    assert [data for _, data in again.taken] == [b"disliked"]


def test_one_object_that_fails_does_not_stop_the_others(open_custody: Callable[..., Custody], metrics: Metrics) -> None:
    taken: list[bytes] = []
    over = threading.Event()

    def hand_on(parcel: Parcel) -> None:
        data = b"".join(parcel.chunks())
        if data == b"bad":
            raise UpstreamError("not this one")
        taken.append(data)
        if len(taken) == 3:
            over.set()

    line = outbox(open_custody(), hand_on, metrics)
    for number, data in enumerate([b"bad", b"1", b"2", b"3"]):
        line.put(memoryview(data), {}, key=str(number))
    line.start()
    assert over.wait(30)
    line.close(30)
    assert (taken, line.depth) == ([b"1", b"2", b"3"], 1)


PUTTER = """
import sys
from pathlib import Path
from gateway.store.kek import RawKek
from gateway.store.custody import Custody
custody = Custody(Path(sys.argv[1]), RawKek(bytes(range(32))), bytes_max=1 << 30, objects_max=100000)
for number in range(100000):
    custody.put(memoryview(str(number).encode() * 1000), {"number": number}, key=str(number))
    print(number, flush=True)
"""


def test_all_that_was_acknowledged_before_a_kill_is_there_whole(tmp_path: Path) -> None:
    directory = tmp_path / "killed"
    acknowledged = -1
    with subprocess.Popen([sys.executable, "-c", PUTTER, str(directory)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged = int(line)
            if acknowledged == 40:
                process.send_signal(signal.SIGKILL)
    custody = Custody(directory, KEK, bytes_max=1 << 30, objects_max=100000)
    parcels = [custody.parcel(identity) for identity in custody.waiting()]
    numbers = [parcel.facts["number"] for parcel in parcels]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > acknowledged
    for parcel in parcels:
        assert b"".join(parcel.chunks()) == str(parcel.facts["number"]).encode() * 1000
    custody.close()
