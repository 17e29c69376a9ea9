"""What is too old goes, on record; what stays is proven as before, and nothing else can be passed off as pruned."""

from __future__ import annotations

import base64
import json
import sqlite3
import time
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from gateway.audit.checkpoint import Checkpoint
from gateway.audit.export import lines, show
from gateway.audit.places import open_reader
from gateway.audit.proving import page, prove_inclusion
from gateway.audit.record import Pruned, Started
from gateway.audit.retention import Retention
from gateway.audit.tree import leaf_hash, verify_inclusion
from gateway.cli.auditing import audit
from gateway.errors import AuditError, ScanError

START = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def _sealed(log) -> None:
    """Wait until all of it is under a checkpoint of the clock's present time."""
    while log.sealed < log.size:
        time.sleep(0.01)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def aged(place, open_log, clock):
    """A log that goes on: ten records a day for four days, under a checkpoint each evening; today is the fifth."""
    log = open_log(clock=clock, checkpoint_records=1)
    for day in range(4):
        clock.now = START + timedelta(days=day)
        for future in [log.append(Started(f"{day}-{number}", "test")) for number in range(10)]:
            future.result()
        _sealed(log)
    clock.now = START + timedelta(days=4)
    yield log
    log.close()


@pytest.fixture
def retention(aged, checkpoint_key, clock):
    def retention_(days_max: float = 2.5, **options) -> Retention:
        return Retention(aged, [checkpoint_key.public_key()], days_max=days_max, clock=clock, **options)

    return retention_


def test_records_that_are_too_old_go_and_the_log_is_verified_as_before(aged, place, retention, examine):
    before = examine(place)
    assert retention().prune() == 20
    after = examine(place)
    assert (after.ok, after.records, after.pruned, after.pruned_by) == (True, 41, 20, 40)
    assert (before.ok, before.pruned, before.pruned_by) == (True, 0, None)
    with open_reader(place.name) as log:
        assert [line["index"] for line in lines(log)] == list(range(20, 41))
        assert show(log, 40)["record"]["kind"] == "pruned"
        with pytest.raises(ScanError, match="record 3 was pruned"):
            show(log, 3)
    bodies = place.query("SELECT body FROM entries ORDER BY idx")
    assert [len(body) > 0 for (body,) in bodies] == [False] * 20 + [True] * 21


def test_what_is_young_enough_stays(retention, examine, place):
    assert retention(5.0).prune() == 0
    assert (examine(place).records, examine(place).pruned) == (40, 0)


def test_a_second_look_takes_what_became_too_old_since(retention, examine, place, clock):
    assert retention().prune() == 20
    assert retention().prune() == 0
    clock.now += timedelta(days=1)
    assert retention().prune() == 10
    report = examine(place)
    assert (report.ok, report.pruned, report.pruned_by) == (True, 30, 41)


def test_what_somebody_still_waits_for_is_kept(retention, examine, place):
    assert retention(needed_from=lambda: 19).prune() < 20
    assert retention(needed_from=lambda: 20).prune() > 0
    assert (examine(place).ok, examine(place).pruned) == (True, 20)


def test_the_pruning_is_on_record_and_under_a_checkpoint_before_anything_goes(aged, place, retention, monkeypatch):
    seen = []

    def look(first: int, end: int) -> None:
        with open_reader(place.name) as log:
            last = log.last_checkpoint()
            seen.append((json.loads(log.entry(40)[1]), last is not None and last[0]))

    monkeypatch.setattr(aged, "prune", look)
    retention().prune()
    ((record, sealed),) = seen
    assert (record["kind"], record["first"], record["end"], record["days_max"]) == ("pruned", 0, 20, 2.5)
    assert datetime.fromisoformat(record["before"]) < START + timedelta(days=1.5)
    assert sealed > 40


def test_a_crash_between_the_record_and_the_pruning_is_made_up_for(aged, place, retention, examine, monkeypatch):
    def cut(first: int, end: int) -> None:
        raise AuditError("the power was cut")

    with monkeypatch.context() as patch:
        patch.setattr(aged, "prune", cut)
        with pytest.raises(AuditError):
            retention().prune()
    assert (examine(place).ok, examine(place).pruned) == (True, 0)
    aged.prune(0, 13)  # as far as it came the next time
    assert (examine(place).ok, examine(place).pruned) == (True, 13)
    assert retention().prune() == 7
    assert (examine(place).ok, examine(place).pruned) == (True, 20)


@pytest.mark.parametrize(
    ("statement", "first_bad"),
    [
        ("UPDATE entries SET body = %s WHERE idx < 25", 20),
        ("UPDATE entries SET body = %s WHERE idx = 30", 30),
        ("UPDATE entries SET hashes = (SELECT hashes FROM entries WHERE idx = 8) WHERE idx = 4", 4),
        ("DELETE FROM entries WHERE idx = 5", 5),
        ("DELETE FROM entries WHERE idx >= 20", 20),
        ("UPDATE entries SET body = (SELECT body FROM entries WHERE idx = 30) WHERE idx = 3", 3),
        ("UPDATE entries SET body = (SELECT body FROM entries WHERE idx = 30) WHERE idx = 33", 33),
    ],
)
def test_a_pruned_log_hides_no_tampering(aged, place, retention, examine, statement, first_bad):
    retention().prune()
    aged.close()
    place.query(statement, *[b""] * statement.count("%s"))
    report = examine(place)
    assert (report.ok, report.first_bad) == (False, first_bad)
    assert report.detail


def test_records_that_are_gone_without_a_record_of_it_are_found(aged, place, examine):
    aged.prune(0, 5)
    report = examine(place)
    assert (report.ok, report.first_bad, report.pruned) == (False, 0, 5)
    assert "records 0 to 4 are gone" in report.detail


def test_a_pruning_that_no_checkpoint_covers_allows_nothing(place, open_log, examine, clock):
    log = open_log(clock=clock, checkpoint_records=2)
    for number in range(2):
        log.append(Started(str(number), "test")).result()
    _sealed(log)
    log.append(Pruned(0, 2, "", 1.0)).result()
    log.prune(0, 2)
    assert examine(place).first_bad == 0
    log.close()  # signs the end
    assert (examine(place).ok, examine(place).pruned) == (True, 2)


def test_a_cut_end_of_a_pruned_log_needs_the_checkpoint_from_outside(
    aged, place, retention, examine, checkpoint_file, checkpoint_key
):
    retention().prune()
    aged.close()
    outside = Checkpoint.open(checkpoint_file.read_bytes(), [checkpoint_key.public_key()])
    place.tamper("DELETE FROM entries WHERE idx >= 41", "DELETE FROM checkpoints WHERE size > 41")
    assert examine(place, outside).ok == (outside.size <= 41)
    place.tamper("DELETE FROM entries WHERE idx >= 30", "DELETE FROM checkpoints WHERE size > 30")
    report = examine(place, outside)
    assert (report.ok, report.first_bad) == (False, 30)
    report = examine(place)  # the record of the pruning went with the end
    assert (report.ok, report.first_bad) == (False, 0)


def test_a_checkpoint_whose_time_was_changed_prunes_nothing(aged, place, retention):
    (note,) = place.query("SELECT note FROM checkpoints WHERE size = 30")[0]
    older = bytes(note).replace(b"time 2026", b"time 2016")  # as if its thirty records were old enough
    place.query("DELETE FROM checkpoints WHERE size > 20 AND size < 30")
    place.query("UPDATE checkpoints SET note = %s WHERE size = 30", older)
    with pytest.raises(AuditError, match="not to be believed"):
        retention().prune()
    assert len(page_of(place)) == 40


def page_of(place) -> list[tuple[int, bytes]]:
    with open_reader(place.name) as log:
        return page(log, 0)


def test_whoever_kept_a_pruned_record_can_still_prove_it(aged, place, retention):
    with open_reader(place.name) as log:
        kept = prove_inclusion(log, 3).record
    retention().prune()
    with open_reader(place.name) as log:
        proof = prove_inclusion(log, 3, 40)
        root = prove_inclusion(log, 30, 40)
    assert (kept != b"", proof.record) == (True, b"")
    checkpoint = next(note for size, note in _notes(place) if size == 40)
    verify_inclusion(leaf_hash(kept), 3, 40, proof.path, checkpoint)
    verify_inclusion(leaf_hash(root.record), 30, 40, root.path, checkpoint)
    assert [len(body) > 0 for _, body in page_of(place)] == [False] * 20 + [True] * 21


def _notes(place):
    for size, note in place.query("SELECT size, note FROM checkpoints"):
        yield size, base64.b64decode(bytes(note).decode().splitlines()[2])


def test_the_log_goes_on_after_a_pruning(aged, place, retention, examine, open_log):
    retention().prune()
    aged.close()
    log = open_log()
    assert log.append(Started("later", "test")).result() == 41
    log.close()
    assert (examine(place).ok, examine(place).records) == (True, 42)


def test_nothing_of_a_pruned_record_is_left_in_the_file(open_log, sqlite_place, checkpoint_key, clock):
    log = open_log(clock=clock, checkpoint_records=1)
    for future in [log.append(Started(f"canary-{number}-" + "x" * 3000, "test")) for number in range(50)]:
        future.result()
    _sealed(log)
    clock.now += timedelta(days=3)
    assert Retention(log, [checkpoint_key.public_key()], days_max=1.0, clock=clock).prune() == 50
    log.close()
    assert b"canary" not in b"".join(file.read_bytes() for file in sqlite_place.path.parent.iterdir())


def test_the_place_itself_lets_bodies_go_and_nothing_else(written):
    statements = (
        "UPDATE entries SET body = '', hashes = '' WHERE idx = 1",
        "UPDATE entries SET body = 'x' WHERE idx = 1",
        "UPDATE entries SET idx = 99, body = '' WHERE idx = 1",
    )
    for statement in statements:
        if written.name.startswith("postgresql"):
            refused = pytest.raises(psycopg.errors.RaiseException, match="append only")
            with psycopg.connect(written.name, options="-c search_path=scanward_audit") as connection, refused:
                connection.execute(statement.encode())
        else:
            with sqlite3.connect(written.name) as database, pytest.raises(sqlite3.IntegrityError):
                database.execute(statement)


def test_the_command_says_what_was_pruned(aged, retention, place, checkpoint_key, tmp_path):
    retention().prune()
    key = tmp_path / "checkpoint.pub"
    key.write_bytes(
        checkpoint_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    said = CliRunner().invoke(audit, ["verify", "--log", place.name, "--key", str(key)])
    assert said.exit_code == 0
    assert "the first 20 pruned (record 40 says so)" in said.output
    said = CliRunner().invoke(audit, ["verify", "--log", place.name, "--key", str(key), "--json"])
    assert json.loads(said.stdout)["pruned"] == {"records": 20, "by": 40}
