"""Sends the log's audit messages to a hospital's audit repositories (IHE ATNA): syslog over TLS, nothing lost.

Messages are those of `atna`, in the frames of RFC 5424 and RFC 5425 (PS3.15 A.6). Each collector has a thread and a
cursor on disk: the index of the first record that it may not have. The cursor moves once a batch was delivered, so a
collector that is away, or a crash here, costs repetitions and no message.

Syslog has no acknowledgement. What stands for one: each batch has a connection of its own; the collector's machine has
acknowledged every byte (TCP), the collector has stayed on the line for a while, and hangs up after we say goodbye (TLS
close_notify). Who hangs up before that, as rsyslog does on a certificate that it does not know, has not taken it; nor
has who hangs up with something unread, since his system then resets the connection.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import json
import os
import socket
import ssl
import termios
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from gateway import durable
from gateway.audit.atna import Sender, message_of
from gateway.audit.export import line_of
from gateway.audit.log import AuditLog
from gateway.audit.sinks import PRUNED
from gateway.errors import ConfigError, GatewayError
from gateway.settings.audit import CollectorConfig
from gateway.telemetry.metrics import Metrics

BATCH_RECORDS_MAX = 1000
"""Records looked at for one connection; their messages are a few kilobytes each."""
LOOK_S = 1.0
"""How often there is a look at what was written since."""

_TIMEOUT_S = 20.0
"""Of one step of a delivery."""
_ACKNOWLEDGED_LOOK_S = 0.01
_PATIENCE_S_MIN, _PATIENCE_HANDSHAKES = 0.5, 10
"""How long a collector must stay on the line: this, and as long as so many of its handshakes, should it be slow."""
_RETRY_S_MIN, _RETRY_S_MAX = 1.0, 60.0
_CLOSING_S = 5.0
"""How long the end of the gateway waits for the last batch: what is not sent waits for the next start."""
_PRI = 85
"""Facility 10 (security/authorization), severity 5 (normal but significant): PS3.15 A.6."""
_MSGID = "DICOM+RFC3881"
_HOST_CHARACTERS_MAX = 255

_log = structlog.get_logger(__name__)


class CollectorError(GatewayError):
    """A collector did not take a batch; the records stay in the log, and it is tried again."""


@dataclass(frozen=True, slots=True)
class Collector:
    """The far end: takes whole batches or none, as far as anybody can tell."""

    host: str
    port: int
    tls: ssl.SSLContext

    @classmethod
    def of(cls, config: CollectorConfig) -> Collector:
        """The one that is configured; raises `ConfigError` where its certificates cannot be used."""
        try:
            tls = ssl.create_default_context(cafile=str(config.roots))
            tls.minimum_version = ssl.TLSVersion.TLSv1_2
            tls.load_cert_chain(config.certificate, config.private_key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                [f"audit.collectors: {config.name}: certificates cannot be used ({type(error).__name__})"]
            ) from None
        host, _, port = config.address.rpartition(":")
        return cls(host.strip("[]"), int(port), tls)

    def deliver(self, frames: bytes) -> None:
        """Hand over some frames; the collector has read them all on return.

        (1) connect, each side known to the other by certificate
        (2) send, and wait until the other machine has acknowledged every byte
        (3) see that the collector does not hang up on us
        (4) say goodbye, and wait until it does

        Raises:
            CollectorError: it may have read some of them or none.
        """
        try:
            with socket.create_connection((self.host, self.port), timeout=_TIMEOUT_S) as plain:  # (1)
                began = time.monotonic()
                with self.tls.wrap_socket(plain, server_hostname=self.host) as connection:
                    handshake_s = time.monotonic() - began
                    connection.sendall(frames)  # (2)
                    _wait_until_acknowledged(connection)
                    _stay(connection, min(_TIMEOUT_S, max(_PATIENCE_S_MIN, _PATIENCE_HANDSHAKES * handshake_s)))  # (3)
                    # An end without TLS's own goodbye is one too: rsyslog with GnuTLS says none.
                    with contextlib.suppress(ssl.SSLEOFError, ssl.SSLZeroReturnError):
                        connection.unwrap()  # (4)
        except (OSError, ssl.SSLError) as error:
            raise CollectorError(f"the collector did not take them: {type(error).__name__}") from None


class Forwarding:
    """Keeps one collector in step with the log, from a thread of its own."""

    def __init__(
        self,
        config: CollectorConfig,
        log: AuditLog,
        *,
        directory: Path,
        ae_titles: Sequence[str],
        metrics: Metrics,
        look_s: float = LOOK_S,
    ) -> None:
        """Find out where it stands; nothing is sent before the `with` block. Raises `ConfigError`.

        Args:
            config: the collector.
            log: whose records are sent; all of them, from the first that this collector may not have.
            directory: holds the cursor, `collector-NAME.json`.
            ae_titles: by which DICOM nodes know this gateway.
            metrics: told how far behind the collector is.
            look_s: seconds between two looks at the log.
        """
        self._name = config.name
        self._collector = Collector.of(config)
        self._sender = Sender(config.source_id, config.site_id, tuple(ae_titles))
        self._audit = log
        self._look_s = look_s
        self._cursor = directory / f"collector-{config.name}.json"
        with log.reader() as reader:
            self._origin, size = reader.origin, reader.size()
        self._next = min(_read_cursor(self._cursor, self._origin), size)  # a restored log may be shorter
        self._behind_since: float | None = None
        metrics.collector_lag(config.name, lambda: self._behind_since)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"collector-{config.name}", daemon=True)

    @property
    def next(self) -> int:
        """Index of the first record that the collector may not have."""
        return self._next

    def __enter__(self) -> Forwarding:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_CLOSING_S)

    def forward(self) -> int:
        """Send what the collector does not have, at most a batch of it; returns how many records were looked at.

        Raises:
            CollectorError: it was not taken.
            AuditError: the log cannot be read, or a record of it is damaged: nothing behind that one is sent.
        """
        frames, first_at, end = bytearray(), None, self._next
        with self._audit.reader() as reader:
            for row in reader.entries(self._next, self._next + BATCH_RECORDS_MAX):
                end = row[0] + 1
                if row[1] == PRUNED:
                    continue
                line = line_of(row)
                first_at = first_at or str(line["record"].get("at", ""))
                message = message_of(line, origin=self._origin, sender=self._sender)
                if message is not None:
                    frames += _framed(message, line["record"])
        if frames:
            self._behind_since = self._behind_since or _seconds(first_at)
            self._collector.deliver(bytes(frames))
        looked_at = end - self._next
        if looked_at:
            durable.replace(self._cursor, json.dumps({"origin": self._origin, "next": end}).encode())
            self._next = end
        self._behind_since = None
        return looked_at

    def _run(self) -> None:
        pause = 0.0
        while True:
            stopping = self._stop.is_set()
            if stopping and pause:
                return
            try:
                more = self.forward() == BATCH_RECORDS_MAX
                if pause:
                    _log.info("collector_reached_again", setting=self._name)
                pause = 0.0
            except (GatewayError, OSError) as error:
                if not pause:
                    _log.error("collector_not_reached", setting=self._name, error=type(error).__name__)
                more, pause = False, min(_RETRY_S_MAX, max(_RETRY_S_MIN, 2 * pause))
            if stopping:  # this was the last look
                return
            self._stop.wait(0.0 if more else pause or self._look_s)


def _framed(message: bytes, record: dict[str, Any]) -> bytes:
    """One syslog message (RFC 5424) behind its length (RFC 5425, 4.3)."""
    host = "".join(c for c in socket.gethostname() if "!" <= c <= "~")[:_HOST_CHARACTERS_MAX] or "-"
    head = f"<{_PRI}>1 {record.get('at') or '-'} {host} scanward {os.getpid()} {_MSGID} - "
    syslog = head.encode() + b"\xef\xbb\xbf" + message
    return f"{len(syslog)} ".encode() + syslog


def _wait_until_acknowledged(connection: socket.socket) -> None:
    """Raises `OSError` where the connection broke, or bytes are still on the way after a while."""
    give_up_at, unacknowledged = time.monotonic() + _TIMEOUT_S, array.array("i", [1])
    while True:
        fcntl.ioctl(connection, termios.TIOCOUTQ, unacknowledged)
        if error := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))
        if not unacknowledged[0]:
            return
        if time.monotonic() > give_up_at:
            raise TimeoutError
        time.sleep(_ACKNOWLEDGED_LOOK_S)


def _stay(connection: ssl.SSLSocket, seconds: float) -> None:
    """Raises `ConnectionError` where the collector hangs up within that time; what it says instead is not for us."""
    until = time.monotonic() + seconds
    try:
        while (left := until - time.monotonic()) > 0.0:
            connection.settimeout(left)
            if not connection.recv(4096):
                raise ConnectionResetError
    except TimeoutError:
        pass
    finally:
        connection.settimeout(_TIMEOUT_S)


def _read_cursor(path: Path, origin: str) -> int:
    """Where this collector stands in the log of that name; at its beginning where nobody knows."""
    try:
        cursor = json.loads(path.read_bytes())
        return int(cursor["next"]) if cursor["origin"] == origin else 0
    except FileNotFoundError:
        return 0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError([f"audit.collectors: {path} cannot be read ({type(error).__name__})"]) from None


def _seconds(at: str | None) -> float:
    """Since the epoch; of now, where a record does not say."""
    try:
        return datetime.fromisoformat(at or "").timestamp()
    except ValueError:
        return time.time()
