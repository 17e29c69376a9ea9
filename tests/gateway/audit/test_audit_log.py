"""An acknowledged record is durable, wherever the log lies, and a log that cannot write says so."""

from __future__ import annotations

import contextlib
import shutil
import threading
from concurrent.futures import Future

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.checkpoint import Checkpoint
from gateway.audit.export import show
from gateway.audit.places import open_reader
from gateway.audit.record import Started
from gateway.audit.sqlite import SqliteSink
from gateway.errors import AuditError, ConfigError, Overloaded


def _note(number: int) -> Started:
    """Any record will do."""
    return Started(str(number), "test")


def _breakable(sink):
    """A real sink whose turns fail while the event is set."""
    broken = threading.Event()

    class Breakable:
        origin = sink.origin
        reader = staticmethod(sink.reader)
        close = staticmethod(sink.close)

        @contextlib.contextmanager
        def turn(self):
            if broken.is_set():
                raise AuditError("the audit log cannot be written: OSError")
            with sink.turn() as turn:
                yield turn

    return Breakable(), broken


def test_records_get_their_places_in_order(open_log, place, examine):
    log = open_log()
    futures = [log.append(_note(number)) for number in range(500)]
    assert [future.result() for future in futures] == list(range(500))
    log.close()
    report = examine(place)
    assert (report.records, report.first_bad, report.ok, report.sealed) == (500, None, True, 500)


def test_many_threads_share_commits_and_lose_nothing(open_log, place, examine):
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
    assert examine(place).ok


def test_a_record_is_durable_before_its_future_is_resolved(open_log, place):
    log = open_log()
    index = log.append(_note(7)).result()
    with open_reader(place.name) as reader:  # another connection sees it
        assert show(reader, index)["record"]["config_sha256"] == "7"
    log.close()


def test_the_log_goes_on_where_it_stopped(open_log, place, examine):
    for number in range(3):
        log = open_log()
        assert log.append(_note(number)).result() == number
        log.close()
    assert examine(place).records == 3


def test_a_second_writer_of_a_file_is_refused(open_log):
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


def test_close_writes_what_waits(open_log, place):
    log = open_log()
    futures = [log.append(_note(number)) for number in range(2000)]
    log.close()
    assert [future.result(timeout=0) for future in futures] == list(range(2000))


def test_a_full_queue_is_overload(open_log, sqlite_place):
    """The sink is held up, so that the queue can fill."""
    gate = threading.Event()
    gate.set()

    class Slow(SqliteSink):
        def turn(self):
            gate.wait(30)
            return super().turn()

    log = open_log(Slow(sqlite_place.path), queue_max=4)
    gate.clear()
    futures: list[Future[int]] = []

    def fill() -> None:
        for number in range(10):
            futures.append(log.append(_note(number)))  # noqa: PERF401 - those before the refusal count

    with pytest.raises(Overloaded):
        fill()
    gate.set()
    assert [future.result() for future in futures] == list(range(len(futures)))
    log.close()


def test_a_failed_commit_reaches_every_caller_and_the_log_recovers(open_log, place, examine):
    sink, broken = _breakable(place.sink())
    log = open_log(sink)
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
    assert examine(place).records == 2


def test_a_log_that_failed_finds_by_itself_that_it_works_again(open_log, place, examine):
    """An unready gateway is sent nothing, so no record would ever try."""
    sink, broken = _breakable(place.sink())
    log = open_log(sink)
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
    assert examine(place).ok


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


def test_a_full_disk_is_an_error_and_the_tree_holds(open_log, sqlite_place, examine):
    """max_page_count makes SQLite refuse as a full disk would."""
    sink = SqliteSink(sqlite_place.path)
    log = open_log(sink)
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
    assert examine(sqlite_place).records == acknowledged + 1


def test_records_that_vanish_under_a_running_log_stop_it(open_log, place):
    log = open_log()
    for number in range(5):
        log.append(_note(number)).result()
    place.tamper("DELETE FROM entries WHERE idx >= 3")
    with pytest.raises(AuditError, match="lost records: 5 were there, 3 are"):
        log.append(_note(5)).result()
    assert not log.healthy
    log.close()


def test_what_was_changed_under_a_running_log_gets_no_signature(open_log, place, examine):
    """The next checkpoint signs what was written, so the change is found with the public key alone."""
    log = open_log()
    for number in range(5):
        log.append(_note(number)).result()
    (body,) = place.query("SELECT body FROM entries WHERE idx = 4")[0]
    changed = bytes(body).replace(b"started", b"lie!")
    place.query("UPDATE entries SET body = %s, hashes = %s WHERE idx = 4", changed, bytes(32))
    log.append(_note(5)).result()
    log.close()
    assert examine(place).first_bad == 4


def test_the_checkpoint_beside_the_log_covers_all_of_it_after_close(written, examine, checkpoint_file, checkpoint_key):
    checkpoint = Checkpoint.open(checkpoint_file.read_bytes(), [checkpoint_key.public_key()])
    report = examine(written, checkpoint)
    assert (checkpoint.size, checkpoint.root.hex()) == (40, report.root)
    assert report.ok


def test_a_checkpoint_falls_due_without_further_records(open_log, checkpoint_file, checkpoint_key):
    log = open_log(checkpoint_s=0.01)
    log.append(_note(0)).result()
    for _ in range(1000):
        if Checkpoint.open(checkpoint_file.read_bytes(), [checkpoint_key.public_key()]).size == 1:
            break
        threading.Event().wait(0.01)
    assert Checkpoint.open(checkpoint_file.read_bytes(), [checkpoint_key.public_key()]).size == 1
    log.close()


def test_a_new_key_goes_on_only_if_the_old_one_is_named(written, open_log, checkpoint_key):
    new = Ed25519PrivateKey.generate()
    with pytest.raises(ConfigError, match="not to be believed"):
        open_log(key=new)
    old = checkpoint_key.public_key()
    log = open_log(key=new, retired=[old])
    log.append(_note(40)).result()
    log.close()
    with open_reader(written.name) as reader:
        from gateway.audit.verify import verify

        assert verify(reader, [old, new.public_key()]).ok
        assert not verify(reader, [new.public_key()]).ok


def test_the_gateway_does_not_go_on_behind_the_checkpoint_in_its_file(written, open_log):
    """The log was cut, checkpoints and all; the file beside it still says how long it was."""
    written.tamper("DELETE FROM entries WHERE idx >= 20", "DELETE FROM checkpoints WHERE size > 20")
    with pytest.raises(ConfigError, match="is over 40 records, and it has 20"):
        open_log()


def test_a_file_with_the_checkpoint_of_another_log_is_refused(written, open_log, checkpoint_file, checkpoint_key):
    checkpoint_file.write_bytes(Checkpoint("another/log", 1, bytes(32), "").sign(checkpoint_key))
    with pytest.raises(ConfigError, match="is of another log"):
        open_log()
