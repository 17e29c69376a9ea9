"""Turns a fuzzer's bytes into a script of edits on a signed object: those an attacker would think of, and others."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence

from signing import DicomError, Elements, read
from signing.dataset import Element
from signing.dictionary import DEFLATED

EDITS_MAX = 6
_SYNTAXES = (b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99",
             b"1.2.840.10008.1.2.5", b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.80")  # fmt: skip
_TAGS = (0x00080001, 0x00080054, 0x00080056, 0x00080016, 0x00081140, 0x00100020, 0x00100021, 0x00281050, 0x00281052,
         0x00283010, 0x00290010, 0x00291001, 0x7FE00001, 0xFFFAFFFA, 0x4FFE0001, 0xFFFCFFFC, 0x00100000)  # fmt: skip
_VRS = (b"LO", b"CS", b"SQ", b"UN", b"OB", b"US", b"SS", b"DS", b"UI", b"UT")


class Script:
    """Reads choices from bytes; runs dry into zeros."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def is_over(self) -> bool:
        return self._at >= len(self._data)

    def take(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken.ljust(count, b"\0")

    def below(self, limit: int) -> int:
        """A number from 0 to limit - 1."""
        return int.from_bytes(self.take(2), "little") % max(1, limit)


def edited(script: Script, objects: Sequence[bytes]) -> bytes:
    """One of the objects after up to six edits; the data set of a deflated one is edited inflated."""
    data = objects[script.below(len(objects))]
    for _ in range(EDITS_MAX):
        if script.is_over:
            break
        edit = _EDITS[script.take(1)[0] % len(_EDITS)]
        try:
            elements = read(data)
        except DicomError:
            break
        head = data[: len(data) - len(elements.data)] if not elements.deflated else data[: _start(data)]
        body = bytes(elements.data) if elements.deflated else data
        changed = edit(body, elements, script, objects)
        data = head + _deflate(changed) if elements.transfer_syntax == DEFLATED else changed
    return data


def _start(data: bytes) -> int:
    return 144 + int.from_bytes(data[140:144], "little")


def _deflate(data: bytes) -> bytes:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return deflater.compress(data) + deflater.flush()


def _everywhere(elements: Elements) -> list[Element]:
    """Elements at every depth."""
    found = list(elements)
    for element in found:
        for item in element.items or ():
            found.extend(item)
    return found


def _any(elements: Elements, script: Script) -> Element:
    every = _everywhere(elements)
    return every[script.below(len(every))]


def _flip(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    at = script.below(len(data))
    return data[:at] + bytes((data[at] ^ (script.take(1)[0] or 1),)) + data[at + 1 :]


def _value(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    element = _any(elements, script)
    if not element.length:
        return data
    at = element.offset + script.below(element.length)
    return data[:at] + bytes((data[at] ^ (script.take(1)[0] or 1),)) + data[at + 1 :]


def _header(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    element = _any(elements, script)
    at = element.start + script.below(element.offset - element.start)
    return data[:at] + script.take(1) + data[at + 1 :]


def _vr(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    element = _any(elements, script)
    return data[: element.start + 4] + _VRS[script.below(len(_VRS))] + data[element.start + 6 :]


def _insert(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    """A new element at its place: a known tag, and a value."""
    tag = _TAGS[script.below(len(_TAGS))]
    order = "<" if elements.little_endian else ">"
    value = script.take(2 * script.below(8))
    if elements.explicit:
        encoded = struct.pack(order + "HH2sH", tag >> 16, tag & 0xFFFF, b"LO", len(value)) + value
    else:
        encoded = struct.pack(order + "HHI", tag >> 16, tag & 0xFFFF, len(value)) + value
    at = next((each.start for each in elements if each.tag > tag), len(data))
    return data[:at] + encoded + data[at:]


def _drop(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    element = _any(elements, script)
    return data[: element.start] + data[element.end :]


def _twice(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    """An element again, right before or after itself, one byte of one of the two changed."""
    element = _any(elements, script)
    copy = bytearray(data[element.start : element.end])
    if element.length:
        copy[element.offset - element.start + script.below(element.length)] ^= 1
    at = element.start if script.below(2) else element.end
    return data[:at] + bytes(copy) + data[at:]


def _swap(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    place = script.below(len(elements) - 1)
    first, second = elements.elements[place], elements.elements[min(place + 1, len(elements) - 1)]
    between = data[first.start : first.end]
    return data[: first.start] + data[second.start : second.end] + between + data[second.end :]


def _merge(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    """Two fragments as one: what is hashed, which leaves lengths out, stays the same."""
    spans = next((each.fragments for each in elements if each.fragments), None)
    if spans is None or len(spans) < 2:
        return data
    place = script.below(len(spans) - 1)
    first, second = spans[place], spans[place + 1]
    merged = data[first.offset : first.offset + first.length] + b"\xfe\xff\x00\xe0"
    merged += data[second.offset : second.offset + second.length]
    end = second.offset + second.length
    return data[: first.offset - 4] + struct.pack("<I", len(merged)) + merged + data[end:]


def _length(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    """Another length in a header, or none."""
    element = _any(elements, script)
    choices = (0, 2, element.length + 2, max(0, element.length - 2), 0xFFFF, 0xFFFFFFFF)
    wide = element.offset - element.start == 12 or not elements.explicit
    order = "<" if elements.little_endian else ">"
    number = choices[script.below(len(choices))] & (0xFFFFFFFF if wide else 0xFFFF)
    at = element.offset - (4 if wide else 2)
    return data[:at] + struct.pack(order + ("I" if wide else "H"), number) + data[element.offset :]


def _undelimit(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    """A sequence of defined length as one of undefined length: hashed the same, and the same."""
    nested = [each for each in elements if each.vr == "SQ" and each.items is not None]
    if not nested:
        return data
    element = nested[script.below(len(nested))]
    order = "<" if elements.little_endian else ">"
    end = struct.pack(order + "HHI", 0xFFFE, 0xE0DD, 0)
    head = data[: element.offset - 4] + struct.pack("<I", 0xFFFFFFFF)
    return head + data[element.offset : element.end] + end + data[element.end :]


def _syntax(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    """Another transfer syntax in the file meta, its group length mended."""
    if elements.deflated:
        return data
    start = _start(data)
    uid = _SYNTAXES[script.below(len(_SYNTAXES))]
    uid += b"\0" * (len(uid) % 2)
    at = data.index(b"\x02\0\x10\0UI", 132, start)
    meta = data[144:at] + b"\x02\0\x10\0UI" + struct.pack("<H", len(uid)) + uid
    return data[:140] + struct.pack("<I", len(meta)) + meta + data[start:]


def _graft(data: bytes, elements: Elements, script: Script, objects: Sequence[bytes]) -> bytes:
    """An element of another original in the place of this one's."""
    other = read(objects[script.below(len(objects))])
    element = elements.elements[script.below(len(elements))]
    theirs = other.get(element.tag)
    if theirs is None:
        return data
    return data[: element.start] + bytes(other.data[theirs.start : theirs.end]) + data[element.end :]


def _noise(data: bytes, elements: Elements, script: Script, _: Sequence[bytes]) -> bytes:
    """Bytes put in, or taken out, anywhere."""
    at, count = script.below(len(data)), script.below(16)
    return data[:at] + script.take(count) + data[at:] if script.below(2) else data[:at] + data[at + count :]


_EDITS: tuple[Callable[[bytes, Elements, Script, Sequence[bytes]], bytes], ...] = (
    _flip, _value, _header, _vr, _insert, _drop, _twice, _swap, _merge, _length, _undelimit, _syntax, _graft, _noise,
)  # fmt: skip
