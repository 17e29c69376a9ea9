"""A strict reader and a small writer of DER (X.690), for what the cryptography library leaves to its caller."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SEQUENCE, SET, INTEGER, OCTET_STRING, OBJECT_IDENTIFIER, NULL = 0x30, 0x31, 0x02, 0x04, 0x06, 0x05
GENERALIZED_TIME = 0x18


class DerError(ValueError):
    """The bytes are not the DER that was expected."""


class Tlv(NamedTuple):
    """One encoded value."""

    tag: int
    whole: bytes
    content: bytes

    def children(self) -> list[Tlv]:
        """The values inside a constructed one."""
        return list(_values(self.content))

    def expect(self, tag: int) -> Tlv:
        """Itself, if it has this tag."""
        if self.tag != tag:
            raise DerError(f"DER tag {self.tag:#04x} where {tag:#04x} is expected")
        return self


def parse(data: bytes) -> Tlv:
    """The one value that `data` consists of."""
    values = list(_values(data))
    if len(values) != 1:
        raise DerError(f"{len(values)} DER values where one is expected")
    return values[0]


def unpadded(data: bytes) -> bytes:
    """The DER value in a DICOM attribute: with exactly no or one padding byte 00, by the outer length."""
    first = next(_values(data, only_first=True), None)
    if first is None:
        raise DerError("no DER value")
    rest = data[len(first.whole) :]
    if rest not in (b"", b"\0") or (rest and len(first.whole) % 2 == 0):
        raise DerError(f"{len(rest)} bytes follow a DER value of {len(first.whole)} bytes")
    return first.whole


def encode(tag: int, *parts: bytes) -> bytes:
    """One value from its content."""
    content = b"".join(parts)
    length = len(content)
    if length < 0x80:
        return bytes((tag, length)) + content
    size = (length.bit_length() + 7) // 8
    return bytes((tag, 0x80 | size)) + length.to_bytes(size, "big") + content


def encode_integer(number: int) -> bytes:
    """A non-negative INTEGER."""
    return encode(INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def encode_oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    content = bytearray()
    for arc in (first * 40 + second, *rest):
        septets = [arc & 0x7F]
        while arc := arc >> 7:
            septets.append(arc & 0x7F | 0x80)
        content += bytes(reversed(septets))
    return encode(OBJECT_IDENTIFIER, bytes(content))


def _values(data: bytes, *, only_first: bool = False) -> Iterator[Tlv]:
    at, end = 0, len(data)
    while at < end:
        start, tag = at, data[at]
        if tag & 0x1F == 0x1F:
            raise DerError("DER tags of several bytes are not used here")
        content = at + 2
        if content > end:
            raise DerError("DER ends within a header")
        length = data[at + 1]
        if length & 0x80:
            size = length & 0x7F
            content += size
            if not 1 <= size <= 4 or content > end:
                raise DerError("DER length of a wrong form")
            length = int.from_bytes(data[at + 2 : content], "big")
            if length < 0x80 or length >> 8 * (size - 1) == 0:
                raise DerError("DER length longer than it need be")
        at = content + length
        if at > end:
            raise DerError(f"DER claims {length} bytes where {end - content} are left")
        yield Tlv(tag, data[start:at], data[content:at])
        if only_first:
            return
