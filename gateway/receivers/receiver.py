"""The contract of a door, who may come through it, and what only doors can refuse."""

from __future__ import annotations

import hashlib
import hmac
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from gateway.deadline import Deadline
from gateway.errors import ConfigError, GatewayError, Overloaded, ScanError
from gateway.scan import Source
from gateway.settings.routes import SourceConfig
from signing import DicomError
from signing.dictionary import DEFLATED
from signing.filemeta import read_file_meta

TOKEN_CHARACTERS_MIN = 32
"""128 bits in hexadecimal: beyond guessing, so no lock-out is needed."""
TOKEN_CHARACTERS_MAX = 4096

ANONYMOUS = "anonymous"
"""Name of the source in the record of a call whose sender is not known."""

_RECORDS_PER_MINUTE_MAX = 60
"""Strangers' attempts recorded one by one; the log would else grow as fast as anybody likes to knock."""


class Receiver(Protocol):
    """A door: starts, tells where it listens, and lets calls in progress finish before it closes."""

    def start(self) -> str:
        """Listen; returns the address as HOST:PORT, the port the real one."""

    def drain(self, seconds: float) -> None:
        """Take no more calls, give those in progress that long, and close."""


class Unauthenticated(ScanError):  # noqa: N818 - the status's own word
    """Nobody knows the sender."""


class NotPermitted(ScanError):  # noqa: N818 - a state, like the status it becomes
    """The sender is known and may not use this route."""


class CutOff(GatewayError):  # noqa: N818 - as above
    """The stream ended before the sender said so; the whole scan may be sent again."""


class Role(StrEnum):
    """What a caller may see of a reply: an answer must not be an oracle for whoever tunes an attack against it."""

    SUBMIT = "submit"
    REVIEW = "review"


@dataclass(frozen=True, slots=True)
class Caller:
    """A known sender or reviewer."""

    source: Source
    role: Role
    routes: tuple[str, ...]

    def route(self, wanted: str) -> str:
        """The route a call goes to; a caller with a single one need not name it.

        Raises:
            ScanError: none was named and there are several.
            NotPermitted: it is not one of the caller's; the same answer whether it exists or not.
        """
        if not wanted:
            if len(self.routes) != 1:
                raise ScanError("name a route: this sender has several")
            return self.routes[0]
        if wanted not in self.routes:
            raise NotPermitted("this sender may not use that route")
        return wanted


class Gate:
    """Knows the configured sources and lets nobody else in."""

    def __init__(self, sources: Iterable[SourceConfig]) -> None:
        """Read the tokens; raises `ConfigError` naming each source whose token cannot serve."""
        self._by_token: dict[bytes, Caller] = {}
        self._by_subject: dict[str, Caller] = {}
        problems = []
        for index, configured in enumerate(sources):
            source = Source(configured.name, configured.enrolled, tls_subject=configured.tls_subject)
            caller = Caller(source, Role(configured.role), configured.routes)
            if configured.tls_subject is not None:
                self._by_subject[configured.tls_subject] = caller
            if configured.token_file is not None:
                token = configured.token_file.read_text("ascii", errors="replace").strip()
                if not TOKEN_CHARACTERS_MIN <= len(token) <= TOKEN_CHARACTERS_MAX or not token.isascii():
                    problems.append(
                        f"sources.{index}.token_file: needs {TOKEN_CHARACTERS_MIN} ASCII characters at least"
                    )
                elif (digest := _digest(token)) in self._by_token:
                    problems.append(f"sources.{index}.token_file: holds the same token as another source")
                else:
                    self._by_token[digest] = caller
        if problems:
            raise ConfigError(problems)

    def admit(self, *, token: str | None, tls_subject: str | None) -> Caller:
        """The caller with this token, or, where none was sent, with this client certificate.

        Raises:
            Unauthenticated: no source has it; a wrong token is not saved by a good certificate.
        """
        if token is not None:
            presented, found = _digest(token[:TOKEN_CHARACTERS_MAX]), None
            for digest, caller in self._by_token.items():  # every one, so that time tells nothing about which
                if hmac.compare_digest(digest, presented):
                    found = caller
            if found is None:
                raise Unauthenticated("the bearer token is not known")
            return found
        if tls_subject is None:
            raise Unauthenticated("the call carries neither a bearer token nor a client certificate")
        try:
            return self._by_subject[tls_subject]
        except KeyError:
            raise Unauthenticated("the client certificate belongs to no configured source") from None


class Refusals:
    """Records refused calls; those of strangers at a bounded rate, the rest of them as a number."""

    def __init__(self, record: Callable[[GatewayError, str], object]) -> None:
        """`record(error, source name)` writes one to the audit log."""
        self._record = record
        self._lock = threading.Lock()
        self._minute = 0
        self._recorded = 0
        self._skipped = 0

    def refused(self, error: GatewayError, source: str) -> None:
        """Record one refusal; raises `AuditError` where the log cannot take it."""
        if isinstance(error, Unauthenticated):
            with self._lock:
                minute = int(time.monotonic() // 60)
                if minute != self._minute:
                    self._minute, self._recorded = minute, 0
                if self._recorded >= _RECORDS_PER_MINUTE_MAX:
                    self._skipped += 1
                    return
                self._recorded += 1
                skipped, self._skipped = self._skipped, 0
            if skipped:
                error = Unauthenticated(f"{error}; {skipped} earlier attempts like it were counted, not recorded")
        self._record(error, source)


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


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
