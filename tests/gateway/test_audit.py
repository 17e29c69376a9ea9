"""An acknowledged record is durable, and a log that cannot write says so."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import Future

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.chain import Checkpoint
from gateway.audit.log import AuditLog
from gateway.audit.record import Started
from gateway.audit.sinks import SqliteSink
from gateway.audit.verify import show, verify
from gateway.errors import AuditError, ConfigError, Overloaded
from gateway.metrics import Metrics


def _note(number: int) -> Started:
    """Any record will do."""
    return Started(str(number), "test")


def test_records_get_their_places_in_order(open_log, audit_path, checkpoint_key):
    log = open_log()
    futures = [log.append(_note(number)) for number in range(500)]
    assert [future.result() for future in futures] == list(range(500))
    log.close()
    report = verify(audit_path, [checkpoint_key.public_key()])
    assert (report.records, report.first_bad, report.ok, report.sealed) == (500, None, True, 500)


def test_many_threads_share_commits_and_lose_nothing(open_log, audit_path, checkpoint_key):
    log = open_log()
    places: list[int] = []

    def write(numbers: range) -> None:
        places.extend(log.append(_note(number)).result() for number in numbers)

    threads = [threading.Thread(target=write, args=(range(base, base + 50),)) for base in range(0, 800, 50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert sorted(places) == list(range(800))
    assert verify(audit_path, [checkpoint_key.public_key()]).ok


def test_a_record_is_on_disk_before_its_future_is_resolved(open_log, audit_path):
    log = open_log()
    index = log.append(_note(7)).result()
    assert show(audit_path, index)["record"]["config_sha256"] == "7"  # another connection sees it
    log.close()


def test_the_log_goes_on_where_it_stopped(open_log, audit_path, checkpoint_key):
    for number in range(3):
        log = open_log()
        assert log.append(_note(number)).result() == number
        log.close()
    assert verify(audit_path, [checkpoint_key.public_key()]).records == 3


def test_a_second_writer_is_refused(open_log):
    log = open_log()
    with pytest.raises(ConfigError, match="another process"):
        open_log()
    log.close()


def test_a_closed_log_takes_nothing(open_log):
    log = open_log()
    log.close()
    with pytest.raises(AuditError, match="closed"):
        log.append(_note(0))
    assert not log.healthy


def test_close_writes_what_waits(open_log, audit_path):
    log = open_log()
    futures = [log.append(_note(number)) for number in range(2000)]
    log.close()
    assert [future.result(timeout=0) for future in futures] == list(range(2000))


def test_a_full_queue_is_overload(open_log):
    """The sink is held up, so that the queue can fill."""
    gate = threading.Event()

    class Slow(SqliteSink):
        def append(self, entries):
            gate.wait(30)
            super().append(entries)

    log = open_log(Slow, queue_max=4)
    futures: list[Future[int]] = []

    def fill() -> None:
        for number in range(10):
            futures.append(log.append(_note(number)))  # noqa: PERF401 - those before the refusal count

    with pytest.raises(Overloaded):
        fill()
    gate.set()
    assert [future.result() for future in futures] == list(range(len(futures)))
    log.close()


def test_a_failed_commit_reaches_every_caller_and_the_log_recovers(open_log, audit_path, checkpoint_key):
    broken = threading.Event()

    class Failing(SqliteSink):
        def append(self, entries):
            if broken.is_set():
                raise AuditError("the audit log cannot be written: OSError")
            super().append(entries)

    log = AuditLog(
        Failing(audit_path), checkpoint_key, metrics=Metrics(), checkpoint_file=audit_path.with_suffix(".checkpoint")
    )
    assert log.append(_note(0)).result() == 0
    broken.set()
    for future in [log.append(_note(1)), log.append(_note(2))]:
        with pytest.raises(AuditError):
            future.result()
    assert not log.healthy
    broken.clear()
    assert log.append(_note(3)).result() == 1
    assert log.healthy
    log.close()
    assert verify(audit_path, [checkpoint_key.public_key()]).records == 2


def test_a_log_that_failed_finds_by_itself_that_it_works_again(open_log, audit_path, checkpoint_key):
    """An unready gateway is sent nothing, so no record would ever try."""
    broken = threading.Event()

    class Failing(SqliteSink):
        def _write(self, statement, rows):
            if broken.is_set():
                raise AuditError("the audit log cannot be written: OSError")
            super()._write(statement, rows)

    log = AuditLog(
        Failing(audit_path), checkpoint_key, metrics=Metrics(), checkpoint_file=audit_path.with_suffix(".checkpoint")
    )
    broken.set()
    with pytest.raises(AuditError):
        log.append(_note(0)).result()
    assert not log.healthy
    broken.clear()
    for _ in range(1000):
        if log.healthy:
            break
        threading.Event().wait(0.02)
    assert log.healthy
    assert log.append(_note(1)).result() == 0
    log.close()
    assert verify(audit_path, [checkpoint_key.public_key()]).ok


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_file_that_is_gone_is_an_error_not_a_silent_loss(open_log, audit_path, change):
    log = open_log()
    log.append(_note(0)).result()
    if change == "replaced":
        shutil.copy(audit_path, audit_path.with_suffix(".copy"))
        audit_path.with_suffix(".copy").replace(audit_path)
    else:
        audit_path.unlink()
    with pytest.raises(AuditError):
        log.append(_note(1)).result()
    log.close()


def test_a_full_disk_is_an_error_and_the_chain_holds(audit_path, checkpoint_key):
    """max_page_count makes SQLite refuse as a full disk would."""
    sink = SqliteSink(audit_path)
    log = AuditLog(sink, checkpoint_key, metrics=Metrics(), checkpoint_file=audit_path.with_suffix(".checkpoint"))
    pages = sink._database.execute("PRAGMA page_count").fetchone()[0]
    sink._database.execute(f"PRAGMA max_page_count = {pages + 4}")
    places: list[int] = []

    def fill() -> None:
        for number in range(5000):
            places.append(log.append(_note(number)).result())  # noqa: PERF401 - those before the failure count

    with pytest.raises(AuditError):
        fill()
    acknowledged = len(places)
    sink._database.execute("PRAGMA max_page_count = 1000000")
    assert log.append(_note(-1)).result() == acknowledged
    log.close()
    assert verify(audit_path, [checkpoint_key.public_key()]).records == acknowledged + 1


def test_the_checkpoint_beside_the_log_covers_all_of_it_after_close(written, checkpoint_key):
    sealed = written.with_suffix(".checkpoint").read_bytes()
    checkpoint = Checkpoint.open(sealed, [checkpoint_key.public_key()])
    report = verify(written, [checkpoint_key.public_key()], sealed)
    assert (checkpoint.size, checkpoint.root) == (40, report.root)
    assert report.ok


def test_a_checkpoint_falls_due_without_further_records(open_log, audit_path, checkpoint_key):
    log = open_log(checkpoint_s=0.01)
    log.append(_note(0)).result()
    file = audit_path.with_suffix(".checkpoint")
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
    log.append(_note(40)).result()
    log.close()
    assert verify(written, [old, new.public_key()]).ok
    assert not verify(written, [new.public_key()]).ok
