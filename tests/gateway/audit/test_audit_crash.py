"""An acknowledged record is there after any crash, of a gateway or of the database; several gateways share one log."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from gateway.audit.checkpoint import Checkpoint
from gateway.audit.export import lines
from gateway.audit.places import open_reader
from gateway.audit.postgres import PostgresSink
from gateway.audit.record import Started
from gateway.audit.verify import read_checkpoints
from gateway.errors import AuditError, ConfigError

KILLS = {"sqlite": 10, "postgres": 3}
"""By the kind of place; a longer run only repeats them."""

_APPENDER = """
    import sys, threading
    from dataclasses import dataclass
    from pathlib import Path
    from typing import ClassVar
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from gateway.audit.log import AuditLog
    from gateway.audit.postgres import PostgresSink
    from gateway.audit.sqlite import SqliteSink
    from gateway.telemetry.metrics import Metrics

    @dataclass(frozen=True)
    class Note:
        kind: ClassVar[str] = "note"
        text: str
        def facts(self):
            return {"text": self.text}

    place, file, run, count = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    sink = PostgresSink(place) if place.startswith("postgresql") else SqliteSink(Path(place))
    log = AuditLog(sink, key, metrics=Metrics(), checkpoint_file=file, checkpoint_records=50)
    lock = threading.Lock()
    def write(thread):
        for number in range(count):
            text = f"{run}-{thread}-{number}"
            place = log.append(Note(text)).result()
            with lock:
                sys.stdout.write(f"{place} {text}\\n")
                sys.stdout.flush()
    threads = [threading.Thread(target=write, args=(thread,), daemon=True) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
"""


def _appender(place, file: Path, run: object, count: int = 10**9) -> subprocess.Popen[str]:
    """8 threads append; each line of output is a place and what is there, durable."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_APPENDER), place.name, str(file), str(run), str(count)],
        stdout=subprocess.PIPE,
        text=True,
    )


def _texts(place) -> dict[int, str]:
    with open_reader(place.name) as log:
        return {line["index"]: line["record"]["text"] for line in lines(log)}


def test_every_acknowledged_record_survives_kill_9(place, examine, checkpoint_file, checkpoint_key, request):
    """8 appends are in flight at each kill; what the process said was durable is there, in its place."""
    acknowledged: dict[int, str] = {}
    kills = KILLS[request.node.callspec.params["place"]]
    for run in range(kills):
        process = _appender(place, checkpoint_file, run)
        assert process.stdout is not None
        for seen, line in enumerate(process.stdout, start=1):
            if line.endswith("\n") and len(parts := line.split()) == 2:
                acknowledged[int(parts[0])] = parts[1]
            if seen == 60 + 37 * run:
                process.send_signal(signal.SIGKILL)  # what it still wrote before it died is read to the end
        process.wait()
        assert process.returncode == -signal.SIGKILL
    report = examine(place, *read_checkpoints(checkpoint_file.read_bytes(), [checkpoint_key.public_key()]))
    assert report.ok, report.detail
    texts = _texts(place)
    assert len(acknowledged) > 60 * kills
    assert {index: texts.get(index) for index in acknowledged} == acknowledged
    assert len(set(texts.values())) == len(texts)


def test_two_gateways_append_to_one_log_at_once(postgres_place, examine, tmp_path, checkpoint_key):
    files = [tmp_path / "one.note", tmp_path / "two.note"]
    processes = [_appender(postgres_place, file, run, count=100) for run, file in enumerate(files)]
    acknowledged = dict(line.split() for process in processes for line in process.communicate()[0].splitlines())
    assert [process.returncode for process in processes] == [0, 0]
    notes = [Checkpoint.open(file.read_bytes(), [checkpoint_key.public_key()]) for file in files]
    report = examine(postgres_place, *notes)
    assert (report.ok, report.records, report.sealed) == (True, 1600, 1600), report.detail
    assert {str(index): text for index, text in _texts(postgres_place).items()} == acknowledged


def test_a_killed_database_is_an_error_and_the_log_goes_on_when_it_is_back(
    postgres_place, postgres_server, open_log, examine
):
    """Appends are in flight when the server dies; none that was acknowledged is lost, none is there twice."""
    log = open_log(postgres_place.sink())
    acknowledged: dict[int, str] = {}
    unanswered: set[str] = set()
    going = threading.Event()

    def write(thread: int) -> None:
        for number in range(10**6):
            text = f"{thread}-{number}"
            try:
                acknowledged[log.append(Started(text, "test")).result()] = text
            except AuditError:
                unanswered.add(text)
                return
            if len(acknowledged) > 200:
                going.set()

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    assert going.wait(60)
    postgres_server.kill()
    for thread in threads:
        thread.join(60)
    assert not log.healthy
    with pytest.raises(AuditError):
        log.append(Started("while it is away", "test")).result()
    postgres_server.start()
    for _ in range(3000):
        if log.healthy:
            break
        threading.Event().wait(0.02)
    acknowledged[log.append(Started("it is back", "test")).result()] = "it is back"
    log.close()
    assert examine(postgres_place).ok
    with open_reader(postgres_place.name) as reader:
        texts = {line["index"]: line["record"]["config_sha256"] for line in lines(reader)}
    assert {index: texts.get(index) for index in acknowledged} == acknowledged
    assert len(set(texts.values())) == len(texts)
    assert set(texts.values()) - set(acknowledged.values()) <= unanswered


def test_a_server_that_does_not_commit_to_disk_is_refused(postgres_server):
    weak = postgres_server.dsn("postgres") + "&options=-c%20synchronous_commit%3Doff"
    with pytest.raises(ConfigError, match="synchronous_commit is off: records would not be durable"):
        PostgresSink(weak)
