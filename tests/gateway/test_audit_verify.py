"""No change to the log goes unnoticed, and what is wrong is located."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.chain import Checkpoint, link
from gateway.audit.log import AuditLog
from gateway.audit.record import Started
from gateway.audit.sinks import SqliteSink
from gateway.audit.verify import export_jsonl, show, verify
from gateway.errors import ConfigError, ScanError
from gateway.metrics import Metrics


def _note(number: int) -> Started:
    """Any record will do."""
    return Started(str(number), "test")


def _tamper(path: Path, *statements: str) -> None:
    """What somebody does who can write the file: the triggers are the first thing to go."""
    database = sqlite3.connect(path)
    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        database.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def _rewrite(path: Path, first: int) -> None:
    """Change record `first` and recompute every hash after it: the chain alone cannot see this."""
    database = sqlite3.connect(path)
    for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        database.execute(f"DROP TRIGGER {name}")
    before = database.execute("SELECT hash FROM entries WHERE idx = ?", (first - 1,)).fetchone()[0]
    for index, body in database.execute("SELECT idx, body FROM entries WHERE idx >= ?", (first,)).fetchall():
        changed = body.replace(b"started", b"lie!") if index == first else body
        before = link(before, index, changed)
        database.execute("UPDATE entries SET body = ?, hash = ? WHERE idx = ?", (changed, before, index))
    database.commit()
    database.close()


@pytest.mark.parametrize(
    ("change", "first_bad"),
    [
        ("UPDATE entries SET body = replace(CAST(body AS TEXT), 'started', 'lie!') WHERE idx = 17", 17),
        ("UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), 'started', 'lie!') AS BLOB) WHERE idx = 17", 17),
        ("UPDATE entries SET hash = zeroblob(32) WHERE idx = 17", 17),
        ("UPDATE entries SET hash = 5 WHERE idx = 17", 17),
        ("UPDATE entries SET body = NULL WHERE idx = 39", None),
        ("DELETE FROM entries WHERE idx = 0", 0),
        ("DELETE FROM entries WHERE idx = 17", 17),
        ("DELETE FROM entries WHERE idx >= 35", 35),
        ("DELETE FROM entries", 0),
        ("UPDATE meta SET origin = 'another'", 0),
        ("DELETE FROM checkpoints", 0),
        ("INSERT INTO entries SELECT 40, body, hash FROM entries WHERE idx = 39", 40),
        ("UPDATE checkpoints SET size = 15 WHERE size = 20", 10),
        ("UPDATE checkpoints SET envelope = 'x' WHERE size = 20", 10),
        ("UPDATE checkpoints SET envelope = (SELECT envelope FROM checkpoints WHERE size = 30) WHERE size = 20", 10),
    ],
)
def test_a_change_is_found_and_located(written, checkpoint_key, change, first_bad):
    if first_bad is None:
        with pytest.raises(sqlite3.IntegrityError):
            _tamper(written, change)
        return
    _tamper(written, change)
    report = verify(written, [checkpoint_key.public_key()])
    assert (report.ok, report.first_bad) == (False, first_bad)
    assert report.detail


def test_swapped_records_are_found(written, checkpoint_key):
    _tamper(
        written,
        "UPDATE entries SET idx = -1 WHERE idx = 8",
        "UPDATE entries SET idx = 8 WHERE idx = 9",
        "UPDATE entries SET idx = 9 WHERE idx = -1",
    )
    assert verify(written, [checkpoint_key.public_key()]).first_bad == 8


def test_a_deletion_that_closes_the_gap_is_found(written, checkpoint_key):
    _tamper(written, "DELETE FROM entries WHERE idx = 12", "UPDATE entries SET idx = idx - 1 WHERE idx > 12")
    assert verify(written, [checkpoint_key.public_key()]).first_bad == 12


def test_a_recomputed_chain_breaks_at_the_next_checkpoint(written, checkpoint_key):
    _rewrite(written, 13)
    report = verify(written, [checkpoint_key.public_key()])
    assert (report.ok, report.first_bad) == (False, 10)
    assert "records 10 to 19" in report.detail


def test_a_cut_end_without_its_checkpoints_needs_the_one_from_outside(written, checkpoint_key):
    outside = written.with_suffix(".checkpoint").read_bytes()
    _tamper(written, "DELETE FROM entries WHERE idx >= 20", "DELETE FROM checkpoints WHERE size > 20")
    keys = [checkpoint_key.public_key()]
    assert verify(written, keys).ok
    report = verify(written, keys, outside)
    assert (report.ok, report.first_bad, report.records) == (False, 20, 20)


def test_a_rewritten_end_without_its_checkpoints_needs_the_one_from_outside(written, checkpoint_key):
    outside = written.with_suffix(".checkpoint").read_bytes()
    _rewrite(written, 25)
    _tamper(written, "DELETE FROM checkpoints WHERE size > 20")
    keys = [checkpoint_key.public_key()]
    assert verify(written, keys).ok
    assert verify(written, keys).sealed == 20
    assert verify(written, keys, outside).first_bad == 20


def test_another_keys_checkpoints_are_not_believed(written):
    assert verify(written, [Ed25519PrivateKey.generate().public_key()]).first_bad == 0


def test_another_logs_checkpoint_is_found(written, tmp_path, checkpoint_key):
    other = tmp_path / "other.db"
    file = tmp_path / "other.checkpoint"
    AuditLog(SqliteSink(other), checkpoint_key, metrics=Metrics(), checkpoint_file=file).close()
    report = verify(written, [checkpoint_key.public_key()], file.read_bytes())
    assert (report.ok, report.first_bad) == (False, 0)


def test_a_checkpoint_that_nobody_signed_cannot_be_used(written, checkpoint_key):
    forged = Checkpoint("o", 1, "00" * 32, "2026-01-01T00:00:00Z").sign(Ed25519PrivateKey.generate())
    for checkpoint in (forged, b"", b"not json"):
        with pytest.raises(ConfigError, match="checkpoint"):
            verify(written, [checkpoint_key.public_key()], checkpoint)


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 100])
def test_a_file_that_is_no_log_cannot_be_verified(tmp_path, checkpoint_key, content):
    file = tmp_path / "x.db"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError):
        verify(file, [checkpoint_key.public_key()])


def test_a_damaged_page_is_found(open_log, audit_path, checkpoint_key):
    log = open_log()
    for future in [log.append(_note(number)) for number in range(2000)]:
        future.result()
    log.close()
    size = audit_path.stat().st_size
    with audit_path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(os.urandom(4096))
    report = verify(audit_path, [checkpoint_key.public_key()])
    assert not report.ok
    assert report.first_bad is not None


def test_the_gateway_does_not_go_on_from_an_end_that_was_changed(audit_path, open_log):
    log = open_log()
    for number in range(5):
        log.append(_note(number)).result()
    copy = audit_path.with_suffix(".copy")
    database = sqlite3.connect(audit_path)
    database.execute("VACUUM INTO ?", (str(copy),))  # as a crash leaves it: records after the last checkpoint
    database.close()
    log.close()
    for name in (audit_path, Path(f"{audit_path}-wal"), Path(f"{audit_path}-shm")):
        name.unlink(missing_ok=True)
    copy.rename(audit_path)
    _tamper(
        audit_path,
        "UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), 'started', 'lie!') AS BLOB) WHERE idx = 3",
    )
    with pytest.raises(ConfigError, match="record 3 does not follow"):
        open_log()


def test_sqlite_itself_refuses_changes(written):
    database = sqlite3.connect(written)
    for statement in (
        "UPDATE entries SET body = x'00' WHERE idx = 1",
        "DELETE FROM entries WHERE idx = 39",
        "INSERT INTO entries VALUES (41, x'00', x'00')",
        "INSERT OR REPLACE INTO entries VALUES (3, x'00', x'00')",
        "UPDATE checkpoints SET size = 1",
        "DELETE FROM checkpoints",
        "INSERT OR REPLACE INTO checkpoints VALUES (1, 0, x'00')",
        "UPDATE meta SET origin = 'x'",
        "DELETE FROM meta",
    ):
        with pytest.raises(sqlite3.IntegrityError):
            database.execute(statement)
    database.close()


def test_a_log_of_another_schema_version_is_refused(written, checkpoint_key):
    _tamper(written, "PRAGMA user_version = 9")
    with pytest.raises(ConfigError, match="schema version"):
        SqliteSink(written)
    with pytest.raises(ConfigError, match="schema version"):
        verify(written, [checkpoint_key.public_key()])


def test_a_running_log_can_be_verified_and_is_proven_once_a_checkpoint_covers_it(open_log, audit_path, checkpoint_key):
    log = open_log()
    log.append(_note(0)).result()
    report = verify(audit_path, [checkpoint_key.public_key()])
    assert (report.records, report.first_bad, report.ok, report.sealed) == (1, 0, False, 0)
    assert report.detail == "no signed checkpoint covers any record"
    log.close()
    assert verify(audit_path, [checkpoint_key.public_key()]).ok


def test_a_history_written_anew_without_its_checkpoints_is_not_unchanged(written, checkpoint_key):
    _tamper(written, "DELETE FROM checkpoints")
    assert not verify(written, [checkpoint_key.public_key()]).ok


def test_export_writes_every_record_in_order(written):
    out = io.StringIO()
    assert export_jsonl(written, out) == 40
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["index"] for line in lines] == list(range(40))
    assert [line["record"]["config_sha256"] for line in lines] == [str(number) for number in range(40)]
    assert lines[5] == show(written, 5)


def test_a_place_that_is_not_there_is_named(written):
    with pytest.raises(ScanError, match="no record 40"):
        show(written, 40)


def test_verification_takes_constant_memory(audit_path, open_log, checkpoint_key):
    log = open_log()
    for future in [log.append(Started("x" * 20_000, "test")) for _ in range(3000)]:
        future.result()
    log.close()
    script = """
        import resource, sys
        from pathlib import Path
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from gateway.audit.verify import verify
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(sys.argv[2]))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        report = verify(Path(sys.argv[1]), [key])
        print(report.records, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    key = checkpoint_key.public_key().public_bytes_raw().hex()
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(audit_path), key],
        capture_output=True,
        text=True,
        check=True,
    )
    records, grown_kib = map(int, done.stdout.split())
    assert (records, audit_path.stat().st_size > 60_000_000) == (3000, True)
    assert grown_kib * 1024 < 16_000_000
