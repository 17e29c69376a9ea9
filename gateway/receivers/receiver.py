"""The contract of a door, and what only doors can refuse."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from gateway.deadline import Deadline
from gateway.errors import AuditError, GatewayError, Overloaded, ScanError, Unkept, UpstreamError
from gateway.scan import ANONYMOUS
from signing import DicomError
from signing.dictionary import DEFLATED
from signing.filemeta import read_file_meta

_RECORDS_PER_MINUTE_MAX = 60
"""Refusals of one source recorded one by one; the log would else grow as fast as anybody likes to knock."""
_SOURCES_MAX = 256
"""Sources told apart in a minute; what the rest of them do is counted with the strangers'."""


class Receiver(Protocol):
    """A door: starts, tells where it listens, and lets calls in progress finish before it closes."""

    def start(self) -> str:
        """Listen; returns the address as HOST:PORT, the port the real one."""

    def drain(self, seconds: float) -> None:
        """Take no more calls, give those in progress that long, and close."""


class Unauthenticated(ScanError):  # noqa: N818 - the status's own word
    """Nobody knows the sender."""


class NotPermitted(ScanError):  # noqa: N818 - a state, like the status it becomes
    """The sender is known and may not do this."""


class CutOff(GatewayError):  # noqa: N818 - as above
    """The stream ended before the sender said so; the whole scan may be sent again."""


class Mismatched(ScanError):  # noqa: N818 - as above
    """The data set is not the instance that its envelope says it is (PS3.4 B.2.3, A9xx)."""


class Repeated(GatewayError):  # noqa: N818 - as above
    """Stands in the log for refusals that were not recorded one by one."""


ON_RECORD = (UpstreamError, Unkept, AuditError)
"""Errors of a scan that was decided about: the log has them already, but for the last, which it cannot have."""


class Refusals:
    """Records refused calls: the first of each source in a minute one by one, the rest of them as a number."""

    def __init__(self, record: Callable[[GatewayError, str], object]) -> None:
        """`record(error, source name)` writes one to the audit log."""
        self._record = record
        self._lock = threading.Lock()
        self._minute = 0
        self._recorded: Counter[str] = Counter()
        self._counted: Counter[str] = Counter()

    def refused(self, error: GatewayError, source: str) -> None:
        """Record one refusal; raises `AuditError` where the log cannot take it."""
        source = source if source in self._recorded or len(self._recorded) < _SOURCES_MAX else ANONYMOUS
        with self._lock:
            now = int(time.monotonic() // 60)
            earlier = self._turn() if now != self._minute else {}
            self._minute = now
            alone = self._recorded[source] < _RECORDS_PER_MINUTE_MAX
            (self._recorded if alone else self._counted)[source] += 1
        self._sum_up(earlier)
        if alone:
            self._record(error, source)

    def close(self) -> None:
        """Record what was only counted so far; raises `AuditError`."""
        with self._lock:
            earlier = self._turn()
        self._sum_up(earlier)

    def _turn(self) -> Mapping[str, int]:
        counted, self._counted = self._counted, Counter()
        self._recorded = Counter()
        return counted

    def _sum_up(self, counted: Mapping[str, int]) -> None:
        for source, count in counted.items():
            self._record(Repeated(f"{count} more calls were refused within a minute, and counted alone"), source)


class Inflation:
    """Room for deflated objects: one grows in memory to many times its size, so few may be there at once."""

    def __init__(self, at_once: int = 2) -> None:
        self._places = threading.BoundedSemaphore(at_once)

    @contextmanager
    def room(self, data: bytes | memoryview, deadline: Deadline) -> Iterator[None]:
        """Hold a place while the object is examined, where it is a deflated one.

        Raises:
            Overloaded: no place came free before the deadline.
        """
        if not _is_deflated(data):
            yield
            return
        if not self._places.acquire(timeout=deadline.remaining()):
            raise Overloaded("too many deflated objects are examined at once")
        try:
            yield
        finally:
            self._places.release()


def _is_deflated(data: bytes | memoryview) -> bool:
    try:
        meta, _ = read_file_meta(memoryview(data))
    except DicomError:
        return False  # nothing of it will be inflated
    return meta.transfer_syntax == DEFLATED
