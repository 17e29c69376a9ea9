"""Splits a multipart body as it arrives (RFC 2046 5.1): parts in pieces, nothing held but a header and a delimiter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from enum import Enum, auto

from gateway.errors import ScanError

HEADER_BYTES_MAX = 8192
"""Of one part."""
BOUNDARY_CHARACTERS_MAX = 70
"""RFC 2046 5.1.1."""


@dataclass(frozen=True, slots=True)
class Begin:
    """A part begins."""

    media_type: str
    """Lower case, without parameters."""


@dataclass(frozen=True, slots=True)
class Data:
    """The next bytes of the part."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Aside:
    """Bytes before the first part or after the last, which mean nothing (RFC 2046 5.1.1)."""

    count: int


@dataclass(frozen=True, slots=True)
class End:
    """The part is whole."""


class _State(Enum):
    BEFORE = auto()
    DELIMITER = auto()
    HEADER = auto()
    DATA = auto()
    AFTER = auto()


class Multipart:
    """Reads one body."""

    def __init__(self, boundary: str) -> None:
        """`boundary`: as the Content-Type of the whole names it."""
        self._delimiter = b"\r\n--" + boundary.encode("ascii")
        self._buffer = bytearray(b"\r\n")  # so that the first delimiter looks like the others
        self._state = _State.BEFORE

    @property
    def whole(self) -> bool:
        """Whether the closing delimiter was seen."""
        return self._state is _State.AFTER

    def feed(self, data: bytes) -> Iterator[Begin | Data | End | Aside]:
        """What the next bytes of the body bring; raises ScanError on a part without an end to its header."""
        self._buffer += data
        more = True
        while more and self._state is not _State.AFTER:
            if self._state in {_State.BEFORE, _State.DATA}:
                inside = self._state is _State.DATA
                data, more = self._up_to_delimiter()
                if inside and data:
                    yield Data(data)
                if inside and more:
                    yield End()
                if not inside and data:
                    yield Aside(len(data))
            elif self._state is _State.DELIMITER:
                more = len(self._buffer) >= 2
                if more:
                    self._state = _State.AFTER if self._buffer.startswith(b"--") else _State.HEADER
            elif (header := self._header()) is not None:
                yield Begin(_media_type(header))
            else:
                more = False
        if self._state is _State.AFTER and self._buffer:
            yield Aside(len(self._buffer))
            self._buffer.clear()

    def _up_to_delimiter(self) -> tuple[bytes, bool]:
        """What surely stands before the next delimiter, and whether that was found; takes both away."""
        at = self._buffer.find(self._delimiter)
        count = at if at >= 0 else max(0, len(self._buffer) - len(self._delimiter) + 1)
        data = bytes(self._buffer[:count])
        del self._buffer[: count + (len(self._delimiter) if at >= 0 else 0)]
        if at >= 0:
            self._state = _State.DELIMITER
        return data, at >= 0

    def _header(self) -> bytes | None:
        """A part's header once it is whole; raises ScanError where it is too long."""
        end = self._buffer.find(b"\r\n\r\n", 0, HEADER_BYTES_MAX)
        if end < 0 and len(self._buffer) >= HEADER_BYTES_MAX:
            raise ScanError(f"the header of a part is longer than {HEADER_BYTES_MAX} bytes")
        if end < 0:
            return None
        header = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        self._state = _State.DATA
        return header


def boundary_of(content_type: str) -> str | None:
    """Boundary of a multipart/related body of application/dicom; None where it is anything else (PS3.18 8.7.3)."""
    message = Message()
    message["content-type"] = content_type
    if message.get_content_type() != "multipart/related":
        return None
    kind, boundary = message.get_param("type"), message.get_param("boundary")
    if not isinstance(kind, str) or kind.lower() != "application/dicom":
        return None
    if not isinstance(boundary, str) or not 1 <= len(boundary) <= BOUNDARY_CHARACTERS_MAX or not boundary.isascii():
        return None
    return boundary


def _media_type(header: bytes) -> str:
    for line in header.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-type":
            return value.partition(b";")[0].strip().decode("ascii", "replace").lower()
    return ""
