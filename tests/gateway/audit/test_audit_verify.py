"""No change to the log goes unnoticed, wherever it lies, and what is wrong is located."""

from __future__ import annotations

import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from datetime import UTC, datetime

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.checkpoint import Checkpoint, CheckpointError
from gateway.audit.export import Period, export_jsonl, lines, show
from gateway.audit.places import open_reader
from gateway.audit.record import Started
from gateway.audit.sqlite import SqliteSink
from gateway.audit.tree import Edge
from gateway.audit.verify import read_checkpoints, verify
from gateway.errors import AuditError, ConfigError, ScanError


def _note(number: int) -> Started:
    """Any record will do."""
    return Started(str(number), "test")


def _lie(place, *indices: int) -> None:
    """Change records, not their hashes."""
    for index in indices:
        (body,) = place.query("SELECT body FROM entries WHERE idx = %s", index)[0]
        place.query("UPDATE entries SET body = %s WHERE idx = %s", bytes(body).replace(b"started", b"lie!"), index)


def _rewrite(place) -> None:
    """Compute every hash anew from the records as they now are: the tree alone cannot see what was changed."""
    edge = Edge()
    for index, body in place.query("SELECT idx, body FROM entries ORDER BY idx"):
        edge, entry = edge.entry(bytes(body))
        place.query("UPDATE entries SET hashes = %s WHERE idx = %s", entry.hashes, index)


def _swap(place, one: int, other: int) -> None:
    for to, of in ((-1, one), (one, other), (other, -1)):
        place.query("UPDATE entries SET idx = %s WHERE idx = %s", to, of)


def _close_gap(place, index: int) -> None:
    place.query("DELETE FROM entries WHERE idx = %s", index)
    place.query("UPDATE entries SET idx = -idx WHERE idx > %s", index)
    place.query("UPDATE entries SET idx = -idx - 1 WHERE idx < 0")


def _outside(checkpoint_file, checkpoint_key) -> Checkpoint:
    return Checkpoint.open(checkpoint_file.read_bytes(), [checkpoint_key.public_key()])


@pytest.mark.parametrize(
    ("change", "first_bad"),
    [
        ("UPDATE entries SET hashes = (SELECT hashes FROM entries WHERE idx = 15) WHERE idx = 17", 17),
        ("UPDATE entries SET body = (SELECT body FROM entries WHERE idx = 18) WHERE idx = 17", 17),
        ("DELETE FROM entries WHERE idx = 0", 0),
        ("DELETE FROM entries WHERE idx = 17", 17),
        ("DELETE FROM entries WHERE idx >= 35", 35),
        ("DELETE FROM entries", 0),
        ("UPDATE meta SET origin = 'another'", 0),
        ("DELETE FROM checkpoints", 0),
        ("INSERT INTO entries SELECT 40, body, hashes FROM entries WHERE idx = 39", 40),
        ("INSERT INTO entries SELECT -1, body, hashes FROM entries WHERE idx = 39", 0),
        ("UPDATE checkpoints SET size = 15 WHERE size = 20", 10),
        ("UPDATE checkpoints SET note = (SELECT note FROM checkpoints WHERE size = 30) WHERE size = 20", 10),
        ("DELETE FROM entries WHERE idx >= 38", 38),
    ],
)
def test_a_change_is_found_and_located(written, examine, change, first_bad):
    written.tamper(change)
    report = examine(written)
    assert (report.ok, report.first_bad) == (False, first_bad)
    assert report.detail


@pytest.mark.parametrize("index", range(40))
def test_an_edit_is_found_at_its_place(sqlite_place, written_file, examine, index):
    _lie(sqlite_place, index)
    assert examine(sqlite_place).first_bad == index


@pytest.mark.parametrize("value", [5, "text", bytes(64), b""])
@pytest.mark.parametrize("column", ["hashes", "body"])
def test_an_entry_of_another_kind_is_found_at_its_place(sqlite_place, written_file, examine, column, value):
    """SQLite keeps whatever it is given."""
    sqlite_place.query("UPDATE entries SET hashes = %s WHERE idx = 17".replace("hashes", column), value)
    assert examine(sqlite_place).first_bad == 17


@pytest.mark.parametrize(("one", "other", "first_bad"), [(8, 9, 8), (8, 10, 8), (8, 16, 8), (0, 39, 0), (9, 13, 8)])
def test_swapped_records_are_found(sqlite_place, written_file, examine, one, other, first_bad):
    """With their hashes: where both places complete equal subtrees, the pair is named that does not fit."""
    _swap(sqlite_place, one, other)
    assert examine(sqlite_place).first_bad == first_bad


@pytest.mark.parametrize("index", [0, 1, 12, 13, 38])
def test_a_deletion_that_closes_the_gap_is_found(written, examine, index):
    _close_gap(written, index)
    assert examine(written).first_bad == index


@pytest.mark.parametrize("index", [10, 13, 19])
def test_recomputed_hashes_break_at_the_next_checkpoint(written, examine, index):
    _lie(written, index)
    _rewrite(written)
    report = examine(written)
    assert (report.ok, report.first_bad) == (False, 10)
    assert "records 10 to 19" in report.detail


def test_a_reordering_with_recomputed_hashes_breaks_at_the_next_checkpoint(written, examine):
    _swap(written, 12, 15)
    _rewrite(written)
    assert examine(written).first_bad == 10


def test_a_deletion_with_recomputed_hashes_breaks_at_the_next_checkpoint(written, examine):
    _close_gap(written, 25)
    _rewrite(written)
    assert examine(written).first_bad == 20


def test_a_cut_end_without_its_checkpoints_needs_the_one_from_outside(
    written, examine, checkpoint_file, checkpoint_key
):
    outside = _outside(checkpoint_file, checkpoint_key)
    written.tamper("DELETE FROM entries WHERE idx >= 20", "DELETE FROM checkpoints WHERE size > 20")
    assert examine(written).ok
    report = examine(written, outside)
    assert (report.ok, report.first_bad, report.records) == (False, 20, 20)


def test_a_rewritten_end_without_its_checkpoints_needs_the_one_from_outside(
    written, examine, checkpoint_file, checkpoint_key
):
    outside = _outside(checkpoint_file, checkpoint_key)
    _lie(written, 25)
    _rewrite(written)
    written.tamper("DELETE FROM checkpoints WHERE size > 20")
    assert (examine(written).ok, examine(written).sealed) == (True, 20)
    assert examine(written, outside).first_bad == 20


def test_more_checkpoints_from_outside_locate_more_closely(written, examine, checkpoint_key):
    """Even after whoever holds the log has thrown away all of its own."""
    notes = [bytes(note) for (note,) in written.query("SELECT note FROM checkpoints ORDER BY size")]
    outside = [Checkpoint.open(note, [checkpoint_key.public_key()]) for note in notes]
    _lie(written, 25)
    _rewrite(written)
    written.tamper("DELETE FROM checkpoints WHERE size > 0")
    assert examine(written, *outside).first_bad == 20


def test_an_outside_checkpoint_between_those_inside_is_held_against_the_tree_too(written, examine, checkpoint_key):
    edge = Edge()
    for (body,) in written.query("SELECT body FROM entries ORDER BY idx LIMIT 13"):
        edge, _ = edge.entry(bytes(body))
    (origin,) = written.query("SELECT origin FROM meta")[0]
    assert examine(written, Checkpoint(origin, 13, edge.root, "")).ok
    assert examine(written, Checkpoint(origin, 13, bytes(32), "")).first_bad == 10


def test_another_keys_checkpoints_are_not_believed(written, examine):
    assert examine(written, key=Ed25519PrivateKey.generate()).first_bad == 0


def test_another_logs_checkpoint_is_found(written, examine):
    report = examine(written, Checkpoint("another/log", 0, Edge().root, ""))
    assert (report.ok, report.first_bad) == (False, 0)


def test_a_checkpoint_that_nobody_signed_cannot_be_used(checkpoint_key):
    forged = Checkpoint("o", 1, bytes(32), "").sign(Ed25519PrivateKey.generate())
    for data in (forged, b"", b"not a note", b'{"checkpoint": 5}', b"{}", json.dumps({"checkpoint": "x"}).encode()):
        with pytest.raises(CheckpointError):
            read_checkpoints(data, [checkpoint_key.public_key()])


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 100])
def test_a_file_that_is_no_log_cannot_be_read(tmp_path, content):
    file = tmp_path / "x.db"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(AuditError, match=r"audit log .*x\.db"):
        open_reader(str(file))


def test_a_database_that_is_no_log_or_not_there_cannot_be_read(postgres_server):
    with pytest.raises(AuditError, match="audit log in PostgreSQL"):
        open_reader(postgres_server.database())
    with pytest.raises(AuditError, match="audit log in PostgreSQL"):
        open_reader(postgres_server.dsn("nowhere"))


def test_a_damaged_page_is_found(open_log, sqlite_place, examine):
    log = open_log()
    for future in [log.append(_note(number)) for number in range(2000)]:
        future.result()
    log.close()
    size = sqlite_place.path.stat().st_size
    with sqlite_place.path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(os.urandom(4096))
    report = examine(sqlite_place)
    assert not report.ok
    assert report.first_bad is not None


def test_the_gateway_does_not_go_on_from_an_end_that_was_changed(sqlite_place, open_log, tmp_path):
    log = open_log()
    for number in range(5):
        log.append(_note(number)).result()
    crashed = tmp_path / "crashed.db"
    with sqlite3.connect(sqlite_place.path) as database:  # as a crash leaves it: records after the last checkpoint
        database.execute("VACUUM INTO ?", (str(crashed),))
    log.close()
    shutil.rmtree(sqlite_place.path.parent)
    sqlite_place.path.parent.mkdir()
    crashed.rename(sqlite_place.path)
    _lie(sqlite_place, 3)
    with pytest.raises(ConfigError, match="record 3 does not follow"):
        open_log(checkpoint_file=tmp_path / "new.note")


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET body = NULL WHERE idx = 1",
        "DELETE FROM entries WHERE idx = 39",
        "UPDATE checkpoints SET size = 1",
        "DELETE FROM checkpoints",
        "UPDATE meta SET origin = 'x'",
        "DELETE FROM meta",
    ],
)
def test_the_place_itself_refuses_changes(written, statement):
    if written.name.startswith("postgresql"):
        refused = pytest.raises(psycopg.errors.RaiseException, match="append only")
        with psycopg.connect(written.name, options="-c search_path=scanward_audit") as connection, refused:
            connection.execute(statement.encode())
    else:
        with sqlite3.connect(written.name) as database, pytest.raises(sqlite3.IntegrityError):
            database.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO entries VALUES (41, x'00', x'00')",
        "INSERT OR REPLACE INTO entries VALUES (3, x'00', x'00')",
        "INSERT OR REPLACE INTO checkpoints VALUES (1, 0, x'00')",
    ],
)
def test_sqlite_itself_refuses_an_entry_out_of_place(written_file, sqlite_place, statement):
    with sqlite3.connect(sqlite_place.path) as database, pytest.raises(sqlite3.IntegrityError):
        database.execute(statement)


def test_a_log_of_another_schema_version_is_refused(written_file, sqlite_place):
    sqlite_place.tamper("PRAGMA user_version = 9")
    with pytest.raises(ConfigError, match="schema version"):
        SqliteSink(sqlite_place.path)
    with pytest.raises(AuditError, match="schema version"):
        open_reader(sqlite_place.name)


def test_a_running_log_can_be_verified_and_is_proven_once_a_checkpoint_covers_it(open_log, place, examine):
    log = open_log()
    log.append(_note(0)).result()
    report = examine(place)
    assert (report.records, report.first_bad, report.ok, report.sealed) == (1, 0, False, 0)
    assert report.detail == "no signed checkpoint covers any record"
    log.close()
    assert examine(place).ok


def test_export_writes_every_record_in_order(written):
    out = io.StringIO()
    with open_reader(written.name) as log:
        assert export_jsonl(log, out) == 40
        shown = show(log, 5)
    exported = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["index"] for line in exported] == list(range(40))
    assert [line["record"]["config_sha256"] for line in exported] == [str(number) for number in range(40)]
    assert exported[5] == shown


def test_a_period_is_from_its_start_to_before_its_end(open_log, place):
    times = iter([datetime(2026, 5, day, tzinfo=UTC) for day in (1, 2, 3, 4, 5, 6)])
    log = open_log(clock=lambda: next(times))  # the first and the last are those of checkpoints
    for number in range(4):
        log.append(_note(number)).result()
    log.close()
    period = Period(datetime(2026, 5, 3, tzinfo=UTC), datetime(2026, 5, 5, tzinfo=UTC))
    with open_reader(place.name) as reader:
        assert [line["index"] for line in lines(reader, period)] == [1, 2]
        assert [line["index"] for line in lines(reader, Period(start=period.end))] == [3]


def test_a_place_that_is_not_there_is_named(written):
    with open_reader(written.name) as log, pytest.raises(ScanError, match="no record 40"):
        show(log, 40)


def test_verification_takes_constant_memory(place, open_log, checkpoint_key):
    log = open_log()
    for future in [log.append(Started("x" * 20_000, "test")) for _ in range(2000)]:
        future.result()
    log.close()
    script = """
        import resource, sys
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from gateway.audit.places import open_reader
        from gateway.audit.verify import verify
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(sys.argv[2]))
        with open_reader(sys.argv[1]) as log:
            log.count()
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            report = verify(log, [key])
        print(report.records, report.ok, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    key = checkpoint_key.public_key().public_bytes_raw().hex()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), place.name, key], capture_output=True, text=True, check=True
    )
    records, ok, grown_kib = done.stdout.split()
    assert (records, ok) == ("2000", "True")
    assert int(grown_kib) * 1024 < 24_000_000  # of 40 MB


def test_progress_is_told(place, open_log, checkpoint_key):
    log = open_log()
    for future in [log.append(_note(number)) for number in range(2500)]:
        future.result()
    log.close()
    told: list[int] = []
    with open_reader(place.name) as reader:
        verify(reader, [checkpoint_key.public_key()], (), told.append)
    assert told == [1000, 2000]
