"""The canonical byte stream that a MAC is computed over (PS3.3 C.12.1.1.3.1.2, PS3.15 C)."""

from __future__ import annotations

import hashlib
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

from signing.dataset import DataSet, Element
from signing.dictionary import LONG_VRS, UNIT_BYTES, name
from signing.errors import DicomError, SignatureError
from signing.reasons import Reason

if TYPE_CHECKING:
    from hashlib import _Hash

Chunk: TypeAlias = bytes | memoryview

_ITEM = b"\xfe\xff\x00\xe0"
_SEQUENCE_END = b"\xfe\xff\xdd\xe0"
_NEVER = frozenset((0x00080001, 0x4FFE0001, 0xFFFCFFFC))
_NOT_IN_TAIL = frozenset((0x04000115, 0x04000120, 0x04000305, 0x04000310))
_SWAP_BYTES = 2**20
_ARRAY_CODES = {2: "H", 4: "I", 8: "Q"}


def covered_elements(data_set: DataSet, listed: Iterable[int]) -> tuple[Element, ...]:
    """The listed elements that are present, without what no MAC ever covers inside them.

    The MAC is computed over these, and the verified view is built from these: they cannot differ.

    Raises:
        SignatureError: `unsignable_element`, where a listed element can never be signed.
    """
    covered = []
    for tag in sorted(listed):
        element = data_set.get(tag)
        if is_forbidden(tag) or (element is not None and not is_signable(element)):
            raise SignatureError(Reason.UNSIGNABLE_ELEMENT, f"{name(tag)} is listed, but can never be signed")
        if element is not None:
            covered.append(element if element.items is None else _without_forbidden(element))
    return tuple(covered)


@lru_cache(maxsize=65536)
def is_forbidden(tag: int) -> bool:
    """Never part of a MAC, at any depth: group lengths, groups below 0008, signature macros, padding."""
    return tag & 0xFFFF == 0 or tag < 0x00080000 or tag in _NEVER or tag >> 16 == 0xFFFA


def is_signable(element: Element) -> bool:
    """Not forbidden, and nothing in it of VR UN or longer than its VR can say."""
    tag, vr, _, _, length, _, items, fragments = element
    if vr == "UN" or is_forbidden(tag):
        return False
    if items is not None:
        return all(is_forbidden(inner.tag) or is_signable(inner) for item in items for inner in item)
    return length < 65536 or vr in LONG_VRS or fragments is not None


def update(digest: _Hash, data_set: DataSet, elements: Sequence[Element], *, explicit: bool) -> None:
    """Feed the canonical stream of `elements`, which lie in `data_set.data`, to `digest`."""
    for chunk in stream(data_set, elements, explicit=explicit):
        digest.update(chunk)


def stream(data_set: DataSet, elements: Sequence[Element], *, explicit: bool) -> Iterator[Chunk]:
    """The canonical stream: explicit VR little endian, sequences and fragments without lengths."""
    if explicit and data_set.little_endian:
        return _as_stored(data_set.data, elements)
    return _re_encoded(data_set.data, elements, data_set.little_endian)


def signature_tail(item: DataSet) -> tuple[Element, ...]:
    """The elements of a Digital Signatures item that its MAC covers: not certificate, signature and timestamp."""
    return tuple(
        _without_forbidden(element)
        for element in item
        if element.tag not in _NOT_IN_TAIL and not is_forbidden(element.tag) and is_signable(element)
    )


def new_hash(mac: str) -> _Hash:
    """A hash object for a MAC Algorithm's defined term (PS3.3 C.12.1.1.3.1.2)."""
    return hashlib.new(mac.lower(), usedforsecurity=False)


def _without_forbidden(element: Element) -> Element:
    if element.items is None:
        return element
    items = tuple(
        tuple(_without_forbidden(inner) for inner in item if not is_forbidden(inner.tag)) for item in element.items
    )
    return element._replace(items=items)


def _as_stored(data: memoryview, elements: Sequence[Element]) -> Iterator[Chunk]:
    """Explicit little endian is canonical already: neighbours become one chunk, only nesting is rewritten."""
    start = end = 0
    for element in elements:
        if element.items is None and element.fragments is None:
            if element.start != end:
                if start != end:
                    yield data[start:end]
                start = element.start
            end = element.end
            continue
        if start != end:
            yield data[start:end]
        start = end = 0
        yield from _nested(data, element, data[element.start : element.start + 4], None)
    if start != end:
        yield data[start:end]


def _re_encoded(data: memoryview, elements: Sequence[Element], little_endian: bool) -> Iterator[Chunk]:
    for element in elements:
        tag = struct.pack("<HH", element.tag >> 16, element.tag & 0xFFFF)
        if element.items is not None or element.fragments is not None:
            yield from _nested(data, element, tag, little_endian)
            continue
        form = "<4s2s2xI" if element.vr in LONG_VRS else "<4s2sH"
        yield struct.pack(form, tag, element.vr.encode(), element.length)
        value = data[element.offset : element.offset + element.length]
        unit = 0 if little_endian else UNIT_BYTES.get(element.vr, 0)
        if not unit:
            yield value
        elif len(value) % unit:
            raise DicomError(Reason.MALFORMED, f"{name(element.tag)} has {len(value)} bytes, no multiple of its unit")
        else:
            yield from _swapped(value, unit)


def _nested(data: memoryview, element: Element, tag: Chunk, little_endian: bool | None) -> Iterator[Chunk]:
    """A sequence, or encapsulated Pixel Data, whose VR is OB whatever the file says (PS3.5 A.4)."""
    yield tag
    if element.fragments is not None:
        yield b"OB\0\0"
        for span in element.fragments:
            yield _ITEM
            yield data[span.offset : span.offset + span.length]
    else:
        yield b"SQ\0\0"
        for item in element.items or ():
            yield _ITEM
            yield from _as_stored(data, item) if little_endian is None else _re_encoded(data, item, little_endian)
    yield _SEQUENCE_END


def _swapped(value: memoryview, unit: int) -> Iterator[bytes]:
    for at in range(0, len(value), _SWAP_BYTES):
        numbers = array(_ARRAY_CODES[unit], value[at : at + _SWAP_BYTES].tobytes())
        numbers.byteswap()
        yield numbers.tobytes()
