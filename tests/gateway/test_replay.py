"""The replay ledger: an accepted instance is one content of one patient for ever, in every thread and after a crash."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import pytest

from gateway.errors import ConfigError, Overloaded
from gateway.store.replay import Claim, Replayed, ReplayLedger
from gateway.telemetry.metrics import Metrics

KEY = bytes(range(32))
A, B = "aa" * 32, "bb" * 32
CLAIM = Claim("inference", "1.2.826.0.1.3680043.8.498.1", A, A, (b"PATIENT-4711", b"HOSPITAL"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "replay.sqlite"


@pytest.fixture
def open_ledger(path: Path, metrics: Metrics) -> Iterator[Callable[..., ReplayLedger]]:
    opened = []

    def open_(key: bytes = KEY, **options: object) -> ReplayLedger:
        ledger = ReplayLedger(path, key, **{"age_s_max": None, "metrics": metrics, **options})  # type: ignore[arg-type]
        opened.append(ledger)
        return ledger

    yield open_
    for ledger in opened:
        ledger.close()


@pytest.fixture
def ledger(open_ledger: Callable[..., ReplayLedger]) -> ReplayLedger:
    return open_ledger()


def rows(metrics: Metrics) -> float | None:
    return metrics.registry.get_sample_value("scanward_replay_ledger_rows")


def test_the_same_claim_may_come_as_often_as_it_likes(ledger: ReplayLedger, metrics: Metrics) -> None:
    for _ in range(3):
        ledger.accept(CLAIM)
    assert rows(metrics) == 1


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (replace(CLAIM, content=B), "other signed content"),
        (replace(CLAIM, content=B, signer=B), "other signed content"),
        (replace(CLAIM, patient=(b"PATIENT-4712", b"HOSPITAL")), "another patient"),
        (replace(CLAIM, patient=(b"PATIENT-4711", b"")), "another patient"),
        (replace(CLAIM, patient=(b"PATIENT-4711H", b"OSPITAL")), "another patient"),
    ],
    ids=["content", "content by another signer", "patient", "issuer", "moved letter"],
)
def test_another_content_or_patient_is_a_replay_whoever_signs(
    ledger: ReplayLedger, metrics: Metrics, other: Claim, word: str
) -> None:
    ledger.accept(CLAIM)
    for _ in range(2):  # and it leaves no row, so trying again does not help
        with pytest.raises(Replayed, match=word):
            ledger.accept(other)
    ledger.accept(CLAIM)
    assert rows(metrics) == 1


def test_the_same_content_by_another_signer_is_the_same(ledger: ReplayLedger, metrics: Metrics) -> None:
    ledger.accept(CLAIM)
    ledger.accept(replace(CLAIM, signer=B))
    assert rows(metrics) == 2
    with pytest.raises(Replayed):
        ledger.accept(replace(CLAIM, signer=B, content=B))


def test_other_instances_and_other_profiles_are_not_compared(ledger: ReplayLedger, metrics: Metrics) -> None:
    ledger.accept(CLAIM)
    ledger.accept(replace(CLAIM, instance=CLAIM.instance + "2", content=B))
    ledger.accept(replace(CLAIM, scope="creator", content=B))
    assert rows(metrics) == 3


def test_of_32_callers_with_two_contents_exactly_one_content_wins(ledger: ReplayLedger, metrics: Metrics) -> None:
    for round_ in range(8):
        barrier = Barrier(32)

        def call(number: int, barrier: Barrier = barrier, round_: int = round_) -> tuple[str, bool]:
            claim = replace(CLAIM, instance=f"1.2.3.{round_}", content=(A, B)[number % 2])
            barrier.wait()
            try:
                ledger.accept(claim)
            except Replayed:
                return claim.content, False
            return claim.content, True

        with ThreadPoolExecutor(32) as pool:
            outcomes = list(pool.map(call, range(32)))
        assert set(outcomes) in ({(A, True), (B, False)}, {(A, False), (B, True)})
    assert rows(metrics) == 8


def test_two_processes_on_one_file_agree(ledger: ReplayLedger, open_ledger: Callable[..., ReplayLedger]) -> None:
    other = open_ledger()
    ledger.accept(CLAIM)
    with pytest.raises(Replayed):
        other.accept(replace(CLAIM, content=B))
    other.accept(CLAIM)


def test_a_row_survives_a_kill_before_anything_was_answered(path: Path, open_ledger: Callable[..., ReplayLedger]):
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom gateway.telemetry.metrics import Metrics\n"
        "from gateway.store.replay import Claim, ReplayLedger\n"
        f"ledger = ReplayLedger(Path(sys.argv[1]), {KEY!r}, age_s_max=None, metrics=Metrics())\n"
        f"ledger.accept({CLAIM!r})\nprint('accepted', flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "accepted\n"
        process.kill()
    again = open_ledger()
    again.accept(CLAIM)
    with pytest.raises(Replayed):
        again.accept(replace(CLAIM, content=B))


def test_nothing_on_disk_names_an_instance_or_a_patient(ledger: ReplayLedger, path: Path) -> None:
    ledger.accept(CLAIM)
    for file in path.parent.iterdir():
        stored = file.read_bytes()
        assert not any(word in stored for word in (CLAIM.instance.encode(), b"4711", b"HOSPITAL"))
        assert file.stat().st_mode & 0o077 == 0


def test_what_is_older_than_configured_is_forgotten(open_ledger: Callable[..., ReplayLedger], metrics: Metrics) -> None:
    now = [1000.0]
    ledger = open_ledger(age_s_max=100.0, clock=lambda: now[0])
    ledger.accept(CLAIM)
    ledger.close()
    now[0] = 1200.0
    later = open_ledger(age_s_max=100.0, clock=lambda: now[0])
    assert rows(metrics) == 0
    later.accept(replace(CLAIM, content=B))


def test_a_gateway_that_runs_for_long_forgets_too(open_ledger: Callable[..., ReplayLedger], metrics: Metrics) -> None:
    now = [1000.0]
    ledger = open_ledger(age_s_max=100.0, clock=lambda: now[0])
    for number in range(200):
        ledger.accept(replace(CLAIM, instance=f"1.2.{number}"))
    now[0] = 1200.0
    for number in range(200, 300):
        ledger.accept(replace(CLAIM, instance=f"1.2.{number}"))
    assert rows(metrics) == 100


def test_another_key_is_refused_rather_than_a_memory_that_matches_nothing(
    ledger: ReplayLedger, open_ledger: Callable[..., ReplayLedger]
) -> None:
    with pytest.raises(ConfigError, match=r"another keys\.quarantine"):
        open_ledger(bytes(32))


def test_a_ledger_that_cannot_be_written_accepts_nothing(ledger: ReplayLedger) -> None:
    ledger.close()
    with pytest.raises(Overloaded, match="ProgrammingError"):
        ledger.accept(CLAIM)


def test_a_file_that_is_no_ledger_is_a_configuration_error(path: Path, open_ledger: Callable[..., ReplayLedger]):
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="cannot be opened"):
        open_ledger()
