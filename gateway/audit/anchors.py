"""Carries signed checkpoints off this machine: to a file on another mount, or to a URL; never in anybody's way.

With a checkpoint that lies where the log's owner cannot reach it, a log whose end was cut or rewritten is found out.
Each anchor has a thread of its own and keeps trying; while it cannot, a newer checkpoint takes the place of the one
that waits, since it says all that the older one said.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import structlog

from gateway.durable import sync_directory
from gateway.errors import GatewayError
from gateway.settings.audit import AnchorConfig
from gateway.telemetry.metrics import Metrics

_TIMEOUT_S = 10.0
_RETRY_S_MIN, _RETRY_S_MAX = 1.0, 300.0
_CLOSING_S = 15.0
"""How long the end of the gateway waits for the last checkpoint to arrive."""

_log = structlog.get_logger(__name__)


class AnchorError(GatewayError):
    """A checkpoint was not taken; the log itself is as durable as it was."""


class Anchor(Protocol):
    """A place outside that takes checkpoints."""

    def put(self, note: bytes) -> None:
        """Hand over one signed note; durable there on return. Raises `AnchorError`."""


@dataclass(frozen=True, slots=True)
class FileAnchor:
    """Appends one line of JSON for each checkpoint."""

    path: Path

    def put(self, note: bytes) -> None:
        """Append and sync; the directory must be there, since an empty mount point would look like success."""
        line = json.dumps({"checkpoint": note.decode()}).encode() + b"\n"
        try:
            new = not self.path.exists()
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    line = b"\n" + line  # a full disk cut the line before
                if os.write(descriptor, line) != len(line):
                    raise AnchorError("the file took only a part of the line")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if new:
                sync_directory(self.path.parent)
        except OSError as error:
            raise AnchorError(f"the file cannot be written: {type(error).__name__}") from None


@dataclass(frozen=True, slots=True)
class UrlAnchor:
    """POSTs each checkpoint as text; any 2xx says that it was taken. Redirects are not followed."""

    url: str
    tls: ssl.SSLContext | None

    def put(self, note: bytes) -> None:
        """Send it; bounded in time."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        connection = (
            http.client.HTTPSConnection(host, parts.port, timeout=_TIMEOUT_S, context=self.tls)
            if self.tls is not None
            else http.client.HTTPConnection(host, parts.port, timeout=_TIMEOUT_S)
        )
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", target, note, {"Content-Type": "text/plain; charset=utf-8"})
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise AnchorError(f"the address does not answer: {type(error).__name__}") from None
        finally:
            connection.close()
        if not 200 <= status < 300:
            raise AnchorError(f"the address answered {status}")


class Anchoring:
    """Brings each new checkpoint to every anchor, each in its own time."""

    def __init__(self, configured: Sequence[AnchorConfig], metrics: Metrics) -> None:
        """Start a thread for each anchor; `metrics` is told what arrived."""
        for each in configured:
            metrics.anchored_at(each.name, None)
        self._carriers = [
            _Carrier(each.name, _anchor(each), partial(metrics.anchored_at, each.name)) for each in configured
        ]

    def take(self, note: bytes, signed_at: float) -> None:
        """A new checkpoint, signed at that second since the epoch; returns at once."""
        for carrier in self._carriers:
            carrier.take(note, signed_at)

    def close(self) -> None:
        """Try once more with what waits, and stop."""
        for carrier in self._carriers:
            carrier.stop()
        for carrier in self._carriers:
            carrier.join()


class _Carrier:
    def __init__(self, name: str, anchor: Anchor, arrived: Callable[[float], object]) -> None:
        self._name = name
        self._anchor = anchor
        self._arrived = arrived
        self._changed = threading.Condition()
        self._waiting: tuple[bytes, float] | None = None
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"anchor-{name}", daemon=True)
        self._thread.start()

    def take(self, note: bytes, signed_at: float) -> None:
        with self._changed:
            self._waiting = (note, signed_at)
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()

    def join(self) -> None:
        self._thread.join(_CLOSING_S)

    def _run(self) -> None:
        pause = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._stopped, timeout=pause)  # after a failure, unless it is the end
                self._changed.wait_for(lambda: self._stopped or self._waiting is not None)
                waiting, stopped = self._waiting, self._stopped
                self._waiting = None
            if waiting is not None:
                pause = self._carry(*waiting, pause)
            if stopped:
                return

    def _carry(self, note: bytes, signed_at: float, pause: float) -> float:
        """Returns how long to wait before the next try: 0 where this one succeeded."""
        try:
            self._anchor.put(note)
        except AnchorError as error:
            if not pause:
                _log.error("checkpoint_not_anchored", setting=self._name, problems=[str(error)])
            with self._changed:
                self._waiting = self._waiting or (note, signed_at)
            return min(_RETRY_S_MAX, max(_RETRY_S_MIN, 2 * pause))
        if pause:
            _log.info("checkpoint_anchored_again", setting=self._name)
        self._arrived(signed_at)
        return 0.0


def _anchor(configured: AnchorConfig) -> Anchor:
    if configured.file is not None:
        return FileAnchor(configured.file)
    assert configured.url is not None
    if configured.url.startswith("https://"):
        ca = configured.ca
        return UrlAnchor(configured.url, ssl.create_default_context(cafile=None if ca is None else str(ca)))
    return UrlAnchor(configured.url, None)
