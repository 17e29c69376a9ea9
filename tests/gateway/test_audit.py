"""An acknowledged record is there after any crash, and no change to the log goes unnoticed."""

from __future__ import annotations

import io
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.chain import Checkpoint, link
from gateway.audit.log import AuditLog
from gateway.audit.record import Answered, Decided, Failed, Refused, Started
from gateway.audit.sinks import SqliteSink
from gateway.audit.verify import export_jsonl, show, verify
from gateway.errors import AuditError, ConfigError, Overloaded, ScanError, UpstreamError
from gateway.metrics import Metrics
from gateway.reply import Receipt
from gateway.verdict import Disposition, Verdict

KILLS = 10
VERDICT = Verdict(Disposition.QUARANTINE, ("suspect",))  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class _Note:
    kind: ClassVar[str] = "note"
    number: int

    def facts(self) -> dict[str, Any]:
        return {"number": self.number}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "audit.db"


@pytest.fixture
def open_log(path: Path, checkpoint_key: Ed25519PrivateKey) -> Callable[..., AuditLog]:
    def open_(**options: Any) -> AuditLog:
        options = {"metrics": Metrics(), "checkpoint_file": path.with_suffix(".checkpoint"), **options}
        return AuditLog(SqliteSink(path), checkpoint_key, **options)

    return open_


@pytest.fixture
def written(path: Path, open_log: Callable[..., AuditLog]) -> Path:
    """A closed log of 40 records, with checkpoints over 0, 10, 20, 30 and 40."""
    log = open_log(checkpoint_records=10)
    for number in range(40):
        log.append(_Note(number)).result()
    log.close()
    return path


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
        changed = body.replace(b"note", b"lie!") if index == first else body
        before = link(before, index, changed)
        database.execute("UPDATE entries SET body = ?, hash = ? WHERE idx = ?", (changed, before, index))
    database.commit()
    database.close()


# -- appending --


def test_records_get_their_places_in_order(open_log, path, checkpoint_key):
    log = open_log()
    futures = [log.append(_Note(number)) for number in range(500)]
    assert [future.result() for future in futures] == list(range(500))
    log.close()
    report = verify(path, [checkpoint_key.public_key()])
    assert (report.records, report.first_bad, report.ok, report.sealed) == (500, None, True, 500)


def test_many_threads_share_commits_and_lose_nothing(open_log, path, checkpoint_key):
    log = open_log()
    places: list[int] = []

    def write(numbers: range) -> None:
        places.extend(log.append(_Note(number)).result() for number in numbers)

    threads = [threading.Thread(target=write, args=(range(base, base + 50),)) for base in range(0, 800, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(places) == list(range(800))
    assert verify(path, [checkpoint_key.public_key()]).ok


def test_a_record_is_on_disk_before_its_future_is_resolved(open_log, path):
    log = open_log()
    index = log.append(_Note(7)).result()
    assert show(path, index)["record"]["number"] == 7  # another connection sees it
    log.close()


def test_the_log_goes_on_where_it_stopped(open_log, path, checkpoint_key):
    for number in range(3):
        log = open_log()
        assert log.append(_Note(number)).result() == number
        log.close()
    assert verify(path, [checkpoint_key.public_key()]).records == 3


def test_a_second_writer_is_refused(open_log):
    log = open_log()
    with pytest.raises(ConfigError, match="another process"):
        open_log()
    log.close()


def test_a_closed_log_takes_nothing(open_log):
    log = open_log()
    log.close()
    with pytest.raises(AuditError, match="closed"):
        log.append(_Note(0))
    assert not log.healthy


def test_close_writes_what_waits(open_log, path):
    log = open_log()
    futures = [log.append(_Note(number)) for number in range(2000)]
    log.close()
    assert [future.result(timeout=0) for future in futures] == list(range(2000))


def test_a_full_queue_is_overload(path, checkpoint_key):
    """The sink is held up, so that the queue can fill."""
    gate = threading.Event()

    class Slow(SqliteSink):
        def append(self, entries):
            gate.wait(30)
            super().append(entries)

    log = AuditLog(
        Slow(path), checkpoint_key, metrics=Metrics(), checkpoint_file=path.with_suffix(".checkpoint"), queue_max=4
    )
    futures: list[Future[int]] = []

    def fill() -> None:
        for number in range(10):
            futures.append(log.append(_Note(number)))  # noqa: PERF401 - those before the refusal count

    with pytest.raises(Overloaded):
        fill()
    gate.set()
    assert [future.result() for future in futures] == list(range(len(futures)))
    log.close()


def test_a_failed_commit_reaches_every_caller_and_the_log_recovers(path, checkpoint_key):
    broken = threading.Event()

    class Failing(SqliteSink):
        def append(self, entries):
            if broken.is_set():
                raise AuditError("the audit log cannot be written: OSError")
            super().append(entries)

    log = AuditLog(Failing(path), checkpoint_key, metrics=Metrics(), checkpoint_file=path.with_suffix(".checkpoint"))
    assert log.append(_Note(0)).result() == 0
    broken.set()
    for future in [log.append(_Note(1)), log.append(_Note(2))]:
        with pytest.raises(AuditError):
            future.result()
    assert not log.healthy
    broken.clear()
    assert log.append(_Note(3)).result() == 1
    assert log.healthy
    log.close()
    assert verify(path, [checkpoint_key.public_key()]).records == 2


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_file_that_is_gone_is_an_error_not_a_silent_loss(open_log, path, change):
    log = open_log()
    log.append(_Note(0)).result()
    if change == "replaced":
        shutil.copy(path, path.with_suffix(".copy"))
        path.with_suffix(".copy").replace(path)
    else:
        path.unlink()
    with pytest.raises(AuditError):
        log.append(_Note(1)).result()
    log.close()


def test_a_full_disk_is_an_error_and_the_chain_holds(path, checkpoint_key):
    """max_page_count makes SQLite refuse as a full disk would."""
    sink = SqliteSink(path)
    log = AuditLog(sink, checkpoint_key, metrics=Metrics(), checkpoint_file=path.with_suffix(".checkpoint"))
    pages = sink._database.execute("PRAGMA page_count").fetchone()[0]
    sink._database.execute(f"PRAGMA max_page_count = {pages + 4}")
    places: list[int] = []

    def fill() -> None:
        for number in range(5000):
            places.append(log.append(_Note(number)).result())  # noqa: PERF401 - those before the failure count

    with pytest.raises(AuditError):
        fill()
    acknowledged = len(places)
    sink._database.execute("PRAGMA max_page_count = 1000000")
    assert log.append(_Note(-1)).result() == acknowledged
    log.close()
    assert verify(path, [checkpoint_key.public_key()]).records == acknowledged + 1


# -- checkpoints --


def test_the_checkpoint_beside_the_log_covers_all_of_it_after_close(written, checkpoint_key):
    sealed = written.with_suffix(".checkpoint").read_bytes()
    checkpoint = Checkpoint.open(sealed, [checkpoint_key.public_key()])
    report = verify(written, [checkpoint_key.public_key()], sealed)
    assert (checkpoint.size, checkpoint.root) == (40, report.root)
    assert report.ok


def test_a_checkpoint_falls_due_without_further_records(open_log, path, checkpoint_key):
    log = open_log(checkpoint_s=0.01)
    log.append(_Note(0)).result()
    file = path.with_suffix(".checkpoint")
    for _ in range(1000):
        if Checkpoint.open(file.read_bytes(), [checkpoint_key.public_key()]).size == 1:
            break
        threading.Event().wait(0.01)
    assert Checkpoint.open(file.read_bytes(), [checkpoint_key.public_key()]).size == 1
    log.close()


def test_a_new_key_goes_on_only_if_the_old_one_is_named(written, checkpoint_key):
    new = Ed25519PrivateKey.generate()
    file = written.with_suffix(".checkpoint")
    with pytest.raises(ConfigError, match="not to be believed"):
        AuditLog(SqliteSink(written), new, metrics=Metrics(), checkpoint_file=file)
    old = checkpoint_key.public_key()
    log = AuditLog(SqliteSink(written), new, metrics=Metrics(), checkpoint_file=file, retired=[old])
    log.append(_Note(40)).result()
    log.close()
    assert verify(written, [old, new.public_key()]).ok
    assert not verify(written, [new.public_key()]).ok


# -- tampering --


@pytest.mark.parametrize(
    ("change", "first_bad"),
    [
        ("UPDATE entries SET body = replace(CAST(body AS TEXT), 'note', 'lie!') WHERE idx = 17", 17),
        ("UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), 'note', 'lie!') AS BLOB) WHERE idx = 17", 17),
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


def test_a_damaged_page_is_found(open_log, path, checkpoint_key):
    log = open_log()
    for future in [log.append(_Note(number)) for number in range(2000)]:
        future.result()
    log.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(os.urandom(4096))
    report = verify(path, [checkpoint_key.public_key()])
    assert not report.ok
    assert report.first_bad is not None


def test_the_gateway_does_not_go_on_from_an_end_that_was_changed(path, open_log):
    log = open_log()
    for number in range(5):
        log.append(_Note(number)).result()
    copy = path.with_suffix(".copy")
    database = sqlite3.connect(path)
    database.execute("VACUUM INTO ?", (str(copy),))  # as a crash leaves it: records after the last checkpoint
    database.close()
    log.close()
    for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        name.unlink(missing_ok=True)
    copy.rename(path)
    _tamper(path, "UPDATE entries SET body = CAST(replace(CAST(body AS TEXT), 'note', 'lie!') AS BLOB) WHERE idx = 3")
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


# -- reading --


def test_a_running_log_can_be_verified(open_log, path, checkpoint_key):
    log = open_log()
    log.append(_Note(0)).result()
    report = verify(path, [checkpoint_key.public_key()])
    assert (report.records, report.ok, report.sealed) == (1, True, 0)
    log.close()


def test_export_writes_every_record_in_order(written):
    out = io.StringIO()
    assert export_jsonl(written, out) == 40
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["index"] for line in lines] == list(range(40))
    assert [line["record"]["number"] for line in lines] == list(range(40))
    assert lines[5] == show(written, 5)


def test_a_place_that_is_not_there_is_named(written):
    with pytest.raises(ScanError, match="no record 40"):
        show(written, 40)


def test_verification_takes_constant_memory(path, open_log, checkpoint_key):
    @dataclass(frozen=True, slots=True)
    class Long:
        kind: ClassVar[str] = "long"

        def facts(self) -> dict[str, Any]:
            return {"text": "x" * 20_000}

    log = open_log()
    for future in [log.append(Long()) for _ in range(3000)]:
        future.result()
    log.close()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert verify(path, [checkpoint_key.public_key()]).records == 3000
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert path.stat().st_size > 60_000_000
    assert grown_kib * 1024 < 16_000_000


# -- crashes --

_APPENDER = """
    import sys, threading
    from dataclasses import dataclass
    from pathlib import Path
    from typing import ClassVar
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from gateway.audit.log import AuditLog
    from gateway.audit.sinks import SqliteSink
    from gateway.metrics import Metrics

    @dataclass(frozen=True)
    class Note:
        kind: ClassVar[str] = "note"
        text: str
        def facts(self):
            return {"text": self.text}

    path, run = Path(sys.argv[1]), sys.argv[2]
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    log = AuditLog(
        SqliteSink(path), key, metrics=Metrics(), checkpoint_file=path.with_suffix(".checkpoint"), checkpoint_records=50
    )
    lock = threading.Lock()
    def write(thread):
        for number in range(10**9):
            text = f"{run}-{thread}-{number}"
            place = log.append(Note(text)).result()
            with lock:
                sys.stdout.write(f"{place} {text}\\n")
                sys.stdout.flush()
    for thread in range(8):
        threading.Thread(target=write, args=(thread,), daemon=True).start()
    threading.Event().wait()
"""


def test_every_acknowledged_record_survives_kill_9(path, checkpoint_key):
    """8 appends are in flight at each kill; what the process said was durable is there, in its place."""
    acknowledged: dict[int, str] = {}
    for run in range(KILLS):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_APPENDER), str(path), str(run)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        for seen, line in enumerate(process.stdout, start=1):
            if line.endswith("\n") and len(parts := line.split()) == 2:
                acknowledged[int(parts[0])] = parts[1]
            if seen == 60 + 37 * run:
                process.send_signal(signal.SIGKILL)  # what it still wrote before it died is read to the end
        process.wait()
        assert process.returncode == -signal.SIGKILL
    report = verify(path, [checkpoint_key.public_key()], path.with_suffix(".checkpoint").read_bytes())
    assert report.ok, report.detail
    out = io.StringIO()
    export_jsonl(path, out)
    texts = {(line := json.loads(row))["index"]: line["record"]["text"] for row in out.getvalue().splitlines()}
    assert len(acknowledged) > 60 * KILLS
    assert {index: texts.get(index) for index in acknowledged} == acknowledged
    assert len(set(texts.values())) == len(texts)


# -- records --


def test_a_decision_is_recorded_by_digests(audit, make_case):
    case = make_case()
    verdict = Verdict(Disposition.QUARANTINE, (case.findings[1].reason,))
    record = Decided.of(case, verdict).facts()
    assert record["scan_sha256"] == case.scan.sha256
    assert (record["disposition"], record["reasons"]) == ("quarantine", ("suspect",))
    assert record["findings"][1] == {
        "stage": "detection",
        "outcome": "failed",
        "reason": "suspect",
        "score": 3.1,
        "p_value": 0.001,
        "p_values": {"uad": 0.1 + 0.2, "twin": 1e-5},
    }
    assert len(record["examination_sha256"]) == 64
    assert record["digests"]["policy"] == "44" * 32
    assert audit.append(Decided.of(case, verdict)).result() == 0


def test_every_kind_of_record_can_be_appended(audit, make_case):
    case = make_case()
    records = [
        Started("ab" * 32, "0.1.0"),
        Decided.of(case, VERDICT),
        Failed.of(case, UpstreamError("DOE^JANE is what the remote said")),
        Answered.of(case, Receipt(b"{}")),
        Refused.of(ScanError("there is no such route"), receiver="grpc", source="anonymous"),
    ]
    assert [audit.append(record).result() for record in records] == [0, 1, 2, 3, 4]
    assert "DOE" not in str(records[2])
    assert records[4].detail == "there is no such route"


def test_no_header_value_of_a_scan_is_recorded(make_case):
    """A real scan whose identifying values are canaries."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.data import get_testdata_file

    from gateway.case import Case
    from gateway.scan import Scan, Source

    dataset = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    canaries = {"PatientName": "CANARY^ONE", "PatientID": "CANARYTWO", "AccessionNumber": "CANARYTHREE"}
    for keyword, value in canaries.items():
        setattr(dataset, keyword, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    scan = Scan.receive(buffer.getvalue(), route="ct", receiver="grpc", source=Source("scanner", calling_ae="CANARYAE"))
    assert scan.elements is not None
    case = Case(scan, make_case().received_at, make_case().digests, make_case().findings)
    facts = str(Decided.of(case, VERDICT).facts())
    assert "CANARY" not in facts
    assert str(dataset.SOPInstanceUID) not in facts
    assert scan.sop_instance_digest in facts
