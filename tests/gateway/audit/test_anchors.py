"""Checkpoints arrive elsewhere, none is waited for, and one that was away gets the newest."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from gateway.audit.anchors import Anchoring, FileAnchor
from gateway.audit.checkpoint import Checkpoint
from gateway.audit.record import Started
from gateway.audit.verify import read_checkpoints
from gateway.settings.audit import AnchorConfig
from gateway.telemetry.metrics import Metrics
from waiting import until


class Witness:
    """A web server that keeps what is posted to it, with the status that it is told to answer."""

    def __init__(self) -> None:
        self.status, self.notes = 204, []
        kept = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                note = self.rfile.read(int(self.headers["Content-Length"]))
                if kept.status < 300:
                    kept.notes.append(note)
                self.send_response(kept.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/checkpoints?log=1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def witness() -> Iterator[Witness]:
    witness = Witness()
    yield witness
    witness.server.shutdown()
    witness.server.server_close()


@pytest.fixture
def start(open_log):
    """Opens a log that carries its checkpoints to these anchors; closes both at the end."""
    opened = []

    def start_(*anchors: AnchorConfig, **options):
        anchoring = Anchoring(anchors, metrics := Metrics(clock=lambda: 2e9))
        log = open_log(carry_off=anchoring.take, **options)
        opened.append((log, anchoring))
        return log, metrics

    yield start_
    for log, anchoring in opened:
        log.close()
        anchoring.close()


def _age(metrics: Metrics, name: str) -> float:
    value = metrics.registry.get_sample_value("scanward_audit_anchor_age_seconds", {"anchor": name})
    assert value is not None
    return value


def test_every_checkpoint_is_appended_to_the_file_and_verifies(start, tmp_path, sqlite_place, examine, checkpoint_key):
    file = tmp_path / "checkpoints.jsonl"
    log, metrics = start(AnchorConfig(name="disk", file=file), checkpoint_records=1)
    for number in range(3):
        log.append(Started(str(number), "test")).result()
        until(
            lambda sealed=number + 1: (
                json.loads(file.read_text().splitlines()[-1])["checkpoint"].split()[1] == str(sealed)
            )
        )
    assert _age(metrics, "disk") > 0
    outside = read_checkpoints(file.read_bytes(), [checkpoint_key.public_key()])
    assert [checkpoint.size for checkpoint in outside] == [0, 1, 2, 3]
    assert examine(sqlite_place, *outside).ok


def test_the_checkpoint_at_the_end_is_carried_off_too(open_log, tmp_path, checkpoint_key):
    file = tmp_path / "checkpoints.jsonl"
    anchoring = Anchoring([AnchorConfig(name="disk", file=file)], Metrics())
    log = open_log(carry_off=anchoring.take)
    for number in range(5):
        log.append(Started(str(number), "test")).result()
    log.close()
    anchoring.close()
    assert read_checkpoints(file.read_bytes(), [checkpoint_key.public_key()])[-1].size == 5


def test_a_line_that_a_full_disk_cut_spoils_no_other(tmp_path, checkpoint_key):
    file, notes = tmp_path / "checkpoints.jsonl", []
    for size in (1, 2):
        notes.append(Checkpoint("a/log", size, bytes(32), "").sign(checkpoint_key))
        FileAnchor(file).put(notes[-1])
    file.write_bytes(file.read_bytes()[:-30])
    FileAnchor(file).put(notes[0])
    outside = read_checkpoints(file.read_bytes(), [checkpoint_key.public_key()])
    assert [checkpoint.size for checkpoint in outside] == [1, 1]


def test_an_address_gets_each_by_post(start, witness, checkpoint_key):
    log, _ = start(AnchorConfig(name="witness", url=witness.url), checkpoint_records=1)
    log.append(Started("0", "test")).result()
    until(lambda: len(witness.notes) == 2)
    assert read_checkpoints(witness.notes[-1], [checkpoint_key.public_key()])[0].size == 1


@pytest.mark.parametrize("trouble", ["refuses", "is not there"])
def test_an_anchor_that_was_away_delays_nothing_and_gets_the_newest(start, witness, tmp_path, trouble, checkpoint_key):
    missing = tmp_path / "mount" / "checkpoints.jsonl"
    witness.status = 500
    anchor = AnchorConfig(name="a", url=witness.url) if trouble == "refuses" else AnchorConfig(name="a", file=missing)
    log, metrics = start(anchor, checkpoint_records=1)
    for number in range(20):
        log.append(Started(str(number), "test")).result()
    assert log.healthy
    assert _age(metrics, "a") != _age(metrics, "a")  # not a number: nothing has arrived
    missing.parent.mkdir()
    witness.status = 200

    def newest() -> int:
        kept = witness.notes[-1] if witness.notes else missing.read_bytes() if missing.exists() else b""
        return read_checkpoints(kept, [checkpoint_key.public_key()])[-1].size if kept.endswith(b"\n") else 0

    until(lambda: newest() == 20)
    assert len(witness.notes) <= 2  # not one after another: the last of them may have been on its way
    until(lambda: _age(metrics, "a") > 0)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"name": "a"}, "either file or url"),
        ({"name": "a", "file": "x", "url": "http://x"}, "either file or url"),
        ({"name": "a", "url": "ftp://x"}, "must begin with http"),
        ({"name": "a", "url": "http://x", "ca": __file__}, "https url only"),
    ],
)
def test_an_anchor_is_one_place(table, problem):
    with pytest.raises(ValueError, match=problem):
        AnchorConfig.model_validate_json(json.dumps(table))
