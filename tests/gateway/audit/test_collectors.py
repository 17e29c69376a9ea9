"""A hospital's audit repository gets every message, over TLS, whatever happens to it or to the gateway."""

from __future__ import annotations

import base64
import itertools
import json
import re
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from lxml import etree

from gateway.audit.collectors import BATCH_RECORDS_MAX, Collector, CollectorError, Forwarding
from gateway.audit.record import Answered, Inspected, Started
from gateway.errors import AuditError, ConfigError
from gateway.settings.audit import CollectorConfig
from gateway.telemetry.metrics import Metrics
from gateway.testing import write_certificate

SCHEMA = etree.RelaxNG(etree.parse(str(Path(__file__).with_name("audit-message.rng"))))
FRAME = re.compile(
    rb"<85>1 (?P<at>\S+Z) (?P<host>\S+) scanward (?P<process>\d+) DICOM\+RFC3881 - \xef\xbb\xbf(?P<message><.*>)"
)
READERS = 5
"""Of the log; each leaves one record with one message."""


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pki")
    for name, pair in (("ca", ("collector", "gateway")), ("other", ("foreign-collector", "foreign-gateway"))):
        authority = write_certificate(folder, name, None)
        for each in pair:
            write_certificate(folder, each, authority)
    return folder


def _until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, "it never came about"
        time.sleep(0.02)


def _config(pki: Path, port: int, *, ours: str = "gateway", roots: str = "ca") -> CollectorConfig:
    return CollectorConfig(
        name="arr", address=f"127.0.0.1:{port}", roots=pki / f"{roots}.pem",
        certificate=pki / f"{ours}.pem", private_key=pki / f"{ours}.key", source_id="gateway-1", site_id="hospital",
    )  # fmt: skip


class Rsyslog:
    """A real collector: Debian's rsyslog, TLS with certificates both ways, messages kept as they came."""

    def __init__(self, folder: Path, pki: Path, driver: str) -> None:
        folder.mkdir()
        self.kept, self._port_file, self._pid = folder / "kept", folder / "port", folder / "pid"
        self.port = 0
        self._configuration = folder / "rsyslog.conf"
        self._pki, self._driver = pki, driver

    def start(self) -> None:
        self._port_file.unlink(missing_ok=True)
        self._configuration.write_text(f"""
            global(
                defaultNetstreamDriver="{self._driver}" maxMessageSize="64k"
                defaultNetstreamDriverCAFile="{self._pki}/ca.pem"
                defaultNetstreamDriverCertFile="{self._pki}/collector.pem"
                defaultNetstreamDriverKeyFile="{self._pki}/collector.key"
            )
            module(load="imtcp" streamDriver.name="{self._driver}" streamDriver.mode="1"
                   streamDriver.authMode="x509/certvalid")
            template(name="raw" type="list") {{ property(name="rawmsg") constant(value="\\n") }}
            input(type="imtcp" address="127.0.0.1" port="{self.port}" listenPortFileName="{self._port_file}"
                  ruleset="keep")
            ruleset(name="keep") {{ action(type="omfile" file="{self.kept}" template="raw") }}
        """)
        self._process = subprocess.Popen(
            ["rsyslogd", "-n", "-f", self._configuration, "-i", self._pid],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if not self.port:  # it writes the file only where it may choose
            _until(lambda: self._port_file.exists() and self._port_file.read_text().strip().isdecimal())
            self.port = int(self._port_file.read_text())

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait()

    def messages(self) -> list[etree._Element]:
        kept = self.kept.read_bytes() if self.kept.exists() else b""
        return [etree.fromstring(FRAME.fullmatch(line)["message"]) for line in kept.splitlines()]


@pytest.fixture(params=["gtls", "ossl"])
def rsyslog(request: pytest.FixtureRequest, tmp_path: Path, pki: Path) -> Iterator[Rsyslog]:
    if shutil.which("rsyslogd") is None or not list(Path("/usr/lib").glob(f"*/rsyslog/lmnsd_{request.param}.so")):
        pytest.skip("needs rsyslog")
    collector = Rsyslog(tmp_path / "rsyslog", pki, request.param)
    collector.start()
    yield collector
    collector.stop()


class Rude:
    """A collector that hangs up on its first callers in the middle of what they say, and reads the others out."""

    def __init__(self, pki: Path, *, rude_to: int, read: int) -> None:
        self.read: list[bytes] = []
        self._rude, self._bytes = itertools.count(rude_to, -1), read
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.pem"))
        self._tls.verify_mode = ssl.CERT_REQUIRED
        self._tls.load_cert_chain(pki / "collector.pem", pki / "collector.key")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            with suppress(OSError):
                plain, _ = self._listener.accept()
                with self._tls.wrap_socket(plain, server_side=True) as connection:
                    if next(self._rude) > 0:
                        connection.recv(self._bytes)
                        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                        continue
                    heard = b""
                    while more := connection.recv(65536):
                        heard += more
                    self.read.append(heard)
                    connection.unwrap()


@pytest.fixture
def forwarding(open_log, pki, tmp_path):
    """A log in which five people read, and what forwards it to a port."""
    log = open_log()
    _read(log, READERS)

    def forwarding_(port: int, **options) -> Forwarding:
        config = _config(pki, port, **options)
        return Forwarding(
            config, log, directory=tmp_path, ae_titles=["SCANWARD"], metrics=forwarding_.metrics, look_s=0.05
        )

    forwarding_.log, forwarding_.metrics = log, Metrics()
    yield forwarding_
    log.close()


def _read(log, count: int) -> None:
    for future in [log.append(Inspected(f"auditor-{number}", number, 1)) for number in range(count)]:
        future.result()


def _lag(metrics: Metrics) -> float:
    return metrics.registry.get_sample_value("scanward_audit_collector_lag_seconds", {"collector": "arr"})


def _places(messages) -> list[int]:
    return [
        int(base64.b64decode(detail.get("value")))
        for message in messages
        for detail in message.iter("ParticipantObjectDetail")
        if detail.get("type") == "Audit Log Index"
    ]


def _frames(heard: bytes) -> list[bytes]:
    """Octet counting taken to the letter (RFC 5425, 4.3)."""
    found = []
    while heard:
        length, _, heard = heard.partition(b" ")
        found.append(heard[: int(length)])
        heard = heard[int(length) :]
    return found


def test_a_collector_gets_every_message_as_the_standards_say(forwarding, rsyslog):
    """PS3.15 A.6: facility 10, severity 5, MSGID, UTF-8 with its mark; valid by the schema of A.5.1."""
    forward = forwarding(rsyslog.port)
    assert forward.forward() == READERS
    assert forward.forward() == 0
    _until(lambda: len(rsyslog.messages()) == READERS)
    for message in rsyslog.messages():
        SCHEMA.assertValid(message)
        assert message.find("AuditSourceIdentification").get("AuditSourceID") == "gateway-1"
        assert message.findall("ActiveParticipant")[-1].get("AlternativeUserID") == "AETITLES=SCANWARD"
    assert _places(rsyslog.messages()) == list(range(READERS))


def test_a_collector_that_was_away_misses_nothing(forwarding, rsyslog):
    rsyslog.stop()
    with forwarding(rsyslog.port) as forward:
        _until(lambda: _lag(forwarding.metrics) > 0.0)
        assert forward.next == 0
        _read(forwarding.log, READERS)
        rsyslog.start()
        _until(lambda: forward.next == 2 * READERS)
        assert _lag(forwarding.metrics) == 0.0
        rsyslog.stop()
        _read(forwarding.log, READERS)
        _until(lambda: _lag(forwarding.metrics) > 0.0)
        rsyslog.start()
        _until(lambda: forward.next == 3 * READERS)
    _until(lambda: len(set(_places(rsyslog.messages()))) == 3 * READERS)
    assert sorted(set(_places(rsyslog.messages()))) == list(range(3 * READERS))


def test_a_collector_that_does_not_know_the_gateway_gets_nothing(forwarding, rsyslog):
    forward = forwarding(rsyslog.port, ours="foreign-gateway")
    for _ in range(5):
        with pytest.raises(CollectorError):
            forward.forward()
    assert forward.next == 0
    assert rsyslog.messages() == []


def test_a_collector_that_the_gateway_does_not_know_gets_nothing(forwarding, rsyslog):
    forward = forwarding(rsyslog.port, roots="other")
    with pytest.raises(CollectorError, match="SSLCertVerificationError"):
        forward.forward()
    assert (forward.next, rsyslog.messages()) == (0, [])


@pytest.mark.parametrize("read", [1, 2000])
def test_what_a_collector_hung_up_on_is_sent_again(forwarding, pki, read):
    collector = Rude(pki, rude_to=2, read=read)
    _read(forwarding.log, 200)
    with forwarding(collector.port) as forward:
        _until(lambda: forward.next == READERS + 200)
    (heard,) = collector.read
    assert len(_frames(heard)) == READERS + 200
    assert all(FRAME.fullmatch(frame) for frame in _frames(heard))


def test_it_goes_on_where_it_stood_after_a_restart(forwarding, pki):
    collector = Rude(pki, rude_to=0, read=0)
    forwarding(collector.port).forward()
    _read(forwarding.log, 2)
    again = forwarding(collector.port)
    assert (again.next, again.forward(), again.next) == (READERS, 2, READERS + 2)
    assert [len(_frames(heard)) for heard in collector.read] == [READERS, 2]


def test_a_crash_before_the_note_of_it_repeats_a_batch_and_loses_none(forwarding, pki, monkeypatch):
    collector = Rude(pki, rude_to=0, read=0)
    with monkeypatch.context() as patch:
        patch.setattr("gateway.audit.collectors.durable.replace", _crash)
        with pytest.raises(OSError, match="crash"):
            forwarding(collector.port).forward()
    forwarding(collector.port).forward()
    assert [len(_frames(heard)) for heard in collector.read] == [READERS, READERS]


def _crash(*_: object) -> None:
    raise OSError("crash")


def test_another_log_is_sent_from_its_beginning_and_a_shorter_one_from_its_end(forwarding, pki, tmp_path):
    cursor, collector = tmp_path / "collector-arr.json", Rude(pki, rude_to=0, read=0)
    with forwarding.log.reader() as log:
        origin = log.origin
    cursor.write_text(json.dumps({"origin": "another/log", "next": 3}))
    assert forwarding(collector.port).next == 0
    cursor.write_text(json.dumps({"origin": origin, "next": 99}))
    assert forwarding(collector.port).next == READERS
    cursor.write_text("{")
    with pytest.raises(ConfigError, match=r"collector-arr\.json cannot be read"):
        forwarding(collector.port)


def test_records_without_a_message_move_it_on_without_a_connection(open_log, pki, tmp_path):
    log = open_log()
    for _ in range(3):
        log.append(Answered("00" * 32, "chest", "grpc", "ct-1", "11" * 32)).result()
    forward = Forwarding(_config(pki, 1), log, directory=tmp_path, ae_titles=[], metrics=Metrics())
    assert (forward.forward(), forward.next) == (3, 3)
    log.close()


def test_nothing_behind_a_damaged_record_is_sent(forwarding, sqlite_place, pki):
    collector = Rude(pki, rude_to=0, read=0)
    sqlite_place.query("UPDATE entries SET body = %s WHERE idx = 3", b"{")
    forward = forwarding(collector.port)
    with pytest.raises(AuditError, match="record 3"):
        forward.forward()
    assert (forward.next, collector.read) == (0, [])


def test_a_long_log_goes_in_batches(forwarding, pki):
    collector = Rude(pki, rude_to=0, read=0)
    for future in [forwarding.log.append(Started("00" * 32, "1")) for _ in range(BATCH_RECORDS_MAX)]:
        future.result()
    with forwarding(collector.port) as forward:
        _until(lambda: forward.next == BATCH_RECORDS_MAX + READERS)
    assert [len(_frames(heard)) for heard in collector.read] == [BATCH_RECORDS_MAX, READERS]


def test_certificates_that_cannot_be_used_are_named(pki, tmp_path):
    broken = tmp_path / "broken.pem"
    broken.write_text("nothing")
    config = _config(pki, 1).model_copy(update={"roots": broken})
    with pytest.raises(ConfigError, match=r"audit\.collectors: arr: certificates cannot be used"):
        Collector.of(config)
