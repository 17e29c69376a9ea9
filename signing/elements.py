"""The strict DICOM walker: the only parser of untrusted bytes (PS3.5 7, PS3.10 7)."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, TypeAlias

from signing.dataset import DataSet, Element, Span, codec_of, index
from signing.dictionary import (
    DEFLATED,
    EXPLICIT_BIG_ENDIAN,
    IMPLICIT_LITTLE_ENDIAN,
    NATIVE,
    PIXEL_DATA,
    PIXEL_REPRESENTATION,
    VR_FORMS,
    implicit_vr,
    name,
)
from signing.errors import DicomError
from signing.filemeta import read_file_meta
from signing.hashed import Hashed
from signing.reasons import Reason

MIB = 2**20
_UNDEFINED = 0xFFFFFFFF
_NOT_OF_A_DATA_SET = frozenset((0x0000, 0x0002))  # PS3.7 E.1 commands, PS3.10 7.1 file meta information
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD


@dataclass(frozen=True, slots=True)
class Limits:
    """What one object may make us spend; the first three refuse with `limits`, the others with `malformed`."""

    bytes_max: int = 2 * 1024 * MIB
    """Of the file: more than any single object seen in practice, less than a signed 32-bit length."""
    inflated_bytes_max: int = 512 * MIB
    """Of an inflated data set, which must be held in memory."""
    inflate_ratio_max: int = 128
    """Inflated over deflated size, above the first 16 MiB; images reach 40, a bomb 1000."""
    depth_max: int = 32
    """Of nested sequences; enhanced and structured report objects stay under 20."""
    elements_max: int = 250_000
    """In the whole object: 2000 frames with 100 functional group attributes each, and some."""
    items_max: int = 100_000
    fragments_max: int = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class Elements(DataSet):
    """A whole DICOM object: its main data set and its file meta information."""

    transfer_syntax: str
    """UID from the file meta information; how `data` is encoded."""
    explicit: bool
    """VRs are written in the file, not looked up."""
    meta: Mapping[int, bytes]
    """Tag -> value of the file meta information, padding removed."""

    hashed: Hashed | None = None
    """What was hashed while it arrived; verification need not do it again."""

    @property
    def deflated(self) -> bool:
        """`data` is the inflated data set, not the file."""
        return self.transfer_syntax == DEFLATED


def read(
    data: bytes | bytearray | memoryview,
    *,
    limits: Limits = Limits(),
    hashed: Hashed | None = None,
    growing: bool = False,
) -> Elements:
    """Walk a DICOM file once, checking everything that its structure claims.

    Pixel data is never copied, except that a deflated data set is inflated, within limits.

    Args:
        data: the file.
        limits: what it may make us spend.
        hashed: what was hashed of these very bytes while they arrived.
        growing: the file is not whole yet: the native Pixel Data that ends it may claim more bytes than have come.

    Raises:
        DicomError: `limits`, `malformed` or `duplicate_element`; says where.
    """
    buffer = memoryview(data).toreadonly().cast("B")
    if len(buffer) > limits.bytes_max:
        raise DicomError(Reason.LIMITS, f"{len(buffer)} bytes; at most {limits.bytes_max} are examined")

    meta, start = read_file_meta(buffer)
    syntax = meta.transfer_syntax
    if syntax == DEFLATED:
        buffer, start = _inflate(buffer[start:], limits), 0
    little_endian, explicit = syntax != EXPLICIT_BIG_ENDIAN, syntax != IMPLICIT_LITTLE_ENDIAN

    order, encapsulated = "<" if little_endian else ">", syntax not in NATIVE
    walker = _Walker(buffer, limits, order, encapsulated=encapsulated, growing=growing)
    elements = walker.main_data_set(start, explicit=explicit)
    charset = codec_of(buffer, elements)
    return Elements(buffer, elements, little_endian, charset, index(elements), syntax, explicit, meta.values, hashed)


def _inflate(deflated: memoryview, limits: Limits) -> memoryview:
    """PS3.5 A.5: a raw deflate stream, with at most one padding byte after it."""
    allowed = min(limits.inflated_bytes_max, max(16 * MIB, limits.inflate_ratio_max * len(deflated)))
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = bytearray()
    fed = 0
    pending: bytes | memoryview = b""
    try:
        while not inflater.eof:
            if not pending:  # in pieces: zlib copies what it has not consumed each time it is asked
                pending = deflated[fed : fed + MIB]
                fed += len(pending)
            piece = inflater.decompress(pending, MIB)
            pending = inflater.unconsumed_tail
            inflated += piece
            if len(inflated) > allowed:
                raise DicomError(Reason.LIMITS, f"{len(deflated)} deflated bytes expand to more than {allowed}")
            if not piece and not pending and fed == len(deflated) and not inflater.eof:
                raise DicomError(Reason.MALFORMED, "the deflated data set is cut short")
    except zlib.error as error:
        raise DicomError(Reason.MALFORMED, "the deflated data set is not a deflate stream") from error
    trailer = struct.pack("<II", zlib.crc32(inflated), len(inflated))  # of gzip; some writers leave it in place
    after = deflated[fed - len(inflater.unused_data) :]
    if after not in (b"", b"\0", trailer):
        raise DicomError(Reason.MALFORMED, f"{len(after)} bytes follow the deflated data set")
    return memoryview(inflated).toreadonly()


class _Scope(NamedTuple):
    """Where a data set lies."""

    end: int
    """Of the bytes that it may take."""
    depth: int
    """Sequences around it."""
    delimited: bool
    """It ends with a delimiter, not with a length."""
    signed_pixels: bool
    """Pixel Representation of the object around it, which decides between US and SS."""


_Found: TypeAlias = tuple[tuple[Element, ...], int]  # elements, and the offset after them
_Reader: TypeAlias = Callable[[int, _Scope], _Found]
_Items: TypeAlias = tuple[tuple[tuple[Element, ...], ...], int, int]  # items, their end, the end of the delimiter


class _Walker:
    """One pass over a data set. Nothing it does takes more time or memory than the bytes present allow."""

    __slots__ = (
        "_data", "_elements", "_encapsulated", "_growing", "_header", "_items", "_length", "_limits", "_order", "_tag",
    )  # fmt: skip

    def __init__(self, data: memoryview, limits: Limits, order: str, *, encapsulated: bool, growing: bool) -> None:
        self._data, self._limits, self._encapsulated, self._growing = data, limits, encapsulated, growing
        self._elements = limits.elements_max
        self._items = limits.items_max
        self._use(order)

    def _use(self, order: str) -> None:
        self._order = order
        self._header = struct.Struct(order + "HH2sH").unpack_from
        self._tag = struct.Struct(order + "HHI").unpack_from
        self._length = struct.Struct(order + "HI").unpack_from

    def main_data_set(self, at: int, *, explicit: bool) -> tuple[Element, ...]:
        """The whole of the buffer from `at`."""
        read_elements = self._explicit if explicit else self._implicit
        elements, _ = read_elements(at, _Scope(len(self._data), 0, delimited=False, signed_pixels=False))
        if not elements:
            raise DicomError(Reason.MALFORMED, "the data set is empty")
        if not self._encapsulated or elements[-1].tag < PIXEL_DATA:
            return elements
        for element in reversed(elements):
            if element.tag == PIXEL_DATA and element.fragments is None:
                raise DicomError(Reason.MALFORMED, f"Pixel Data at byte {element.start} is not encapsulated")
        return elements

    def _explicit(self, at: int, scope: _Scope) -> _Found:
        """Elements of an explicit VR data set, and the offset after them and their delimiter."""
        end, delimited = scope.end, scope.delimited
        data, header, forms, new = self._data, self._header, VR_FORMS, tuple.__new__
        found: list[Element] = []
        last = -1
        try:
            while at < end:
                group, number, code, length = header(data, at)
                tag = group << 16 | number
                if tag <= last or group == 0xFFFE:
                    if tag == _ITEM_END and delimited:
                        return self._finished(found), self._delimiter_end(at, end)
                    self._misplaced(tag, found, at)
                last = tag
                vr, header_bytes = forms[code]
                if header_bytes == 12:
                    length = self._long_length(at + 6, tag)
                offset = at + header_bytes
                stop = offset + length
                if length == _UNDEFINED or vr == "SQ":
                    found.append(
                        self._nested(new(Element, (tag, vr, at, offset, length, 0, None, None)), scope, self._explicit)
                    )
                    at = found[-1].end
                    continue
                if stop > end or length & 1:
                    end = self._end_of_growing(tag, offset, length, scope)
                found.append(new(Element, (tag, vr, at, offset, length, stop, None, None)))
                at = stop
                self._elements -= 1
                if self._elements < 0:
                    self._too_many("data elements", self._limits.elements_max)
        except KeyError:
            raise DicomError(Reason.MALFORMED, f"{name(tag)} at byte {at} has no valid VR") from None
        except struct.error:
            raise DicomError(Reason.MALFORMED, f"the file ends within a header at byte {at}") from None
        self._ended(delimited, at)
        return self._finished(found), at

    def _implicit(self, at: int, scope: _Scope) -> _Found:
        """As `_explicit`, with VRs from the dictionary."""
        end, delimited = scope.end, scope.delimited
        data, header = self._data, self._tag
        found: list[Element] = []
        last = -1
        try:
            while at < end:
                group, number, length = header(data, at)
                tag = group << 16 | number
                if tag <= last or group == 0xFFFE:
                    if tag == _ITEM_END and delimited:
                        return self._finished(found), self._delimiter_end(at, end)
                    self._misplaced(tag, found, at)
                last = tag
                vr = implicit_vr(tag, scope.signed_pixels)
                offset = at + 8
                if length == _UNDEFINED or vr == "SQ":
                    nested_vr = "SQ" if vr == "UN" else vr  # a private sequence; nothing else may lack a length
                    header_read = Element(tag, nested_vr, at, offset, length, 0, None, None)
                    found.append(self._nested(header_read, scope, self._implicit))
                else:
                    if offset + length > end or length & 1:
                        self._wrong_length(tag, offset, length, end)
                    found.append(Element(tag, vr, at, offset, length, offset + length, None, None))
                    if tag == PIXEL_REPRESENTATION and length == 2:
                        scope = scope._replace(signed_pixels=bool(data[offset] & 1))
                at = found[-1].end
                self._elements -= 1
                if self._elements < 0:
                    self._too_many("data elements", self._limits.elements_max)
        except struct.error:
            raise DicomError(Reason.MALFORMED, f"the file ends within a header at byte {at}") from None
        self._ended(delimited, at)
        return self._finished(found), at

    def _nested(self, element: Element, scope: _Scope, read_elements: _Reader) -> Element:
        """A sequence, encapsulated pixel data, or UN of undefined length (PS3.5 6.2.2, 7.5, A.4)."""
        tag, vr, start, offset, length = element[:5]
        undefined = length == _UNDEFINED
        end = scope.end if undefined else offset + length
        if end > scope.end:
            self._wrong_length(tag, offset, length, scope.end)
        self._elements -= 1
        if tag == PIXEL_DATA and vr in {"OB", "OW"}:
            if not self._encapsulated:
                raise DicomError(Reason.MALFORMED, f"Pixel Data at byte {start} has no length")
            spans, end_of_value, after = self._fragments(offset, end)
            return Element(tag, vr, start, offset, end_of_value - offset, after, None, spans)
        if vr not in {"SQ", "UN"}:
            raise DicomError(Reason.MALFORMED, f"{name(tag)} at byte {start} has VR {vr} and no length")
        if scope.depth >= self._limits.depth_max:
            raise DicomError(Reason.MALFORMED, f"{name(tag)} is nested deeper than {self._limits.depth_max} sequences")
        inner = _Scope(end, scope.depth + 1, undefined, scope.signed_pixels)
        if vr == "UN":
            items, end_of_value, after = self._unknown_items(offset, inner)
        else:
            items, end_of_value, after = self._sequence(offset, inner, read_elements)
        return Element(tag, vr, start, offset, end_of_value - offset, after, items, None)

    def _unknown_items(self, at: int, scope: _Scope) -> _Items:
        """UN of undefined length holds implicit VR little endian items, whatever the file's syntax (PS3.5 6.2.2)."""
        order = self._order
        self._use("<")
        try:
            return self._sequence(at, scope, self._implicit)
        finally:
            self._use(order)

    def _sequence(self, at: int, scope: _Scope, read_elements: _Reader) -> _Items:
        """Items; the end of the last one; the end of the sequence, its delimiter included."""
        items: list[tuple[Element, ...]] = []
        while at < scope.end:
            group, number, length = self._tag(self._data, at)
            tag = group << 16 | number
            if tag == _SEQUENCE_END and scope.delimited:
                return tuple(items), at, self._delimiter_end(at, scope.end)
            if tag != _ITEM:
                raise DicomError(Reason.MALFORMED, f"{name(tag)} at byte {at} where an item must begin")
            undefined = length == _UNDEFINED
            end = scope.end if undefined else at + 8 + length
            if end > scope.end:
                self._wrong_length(tag, at + 8, length, scope.end)
            elements, at = read_elements(at + 8, scope._replace(end=end, delimited=undefined))
            items.append(elements)
            self._items -= 1
            if self._items < 0:
                self._too_many("sequence items", self._limits.items_max)
        self._ended(scope.delimited, at)
        return tuple(items), at, at

    def _fragments(self, at: int, end: int) -> tuple[tuple[Span, ...], int, int]:
        """PS3.5 A.4: the offset table and the fragments; their end; the end of the delimiter."""
        spans: list[Span] = []
        while at < end:
            group, number, length = self._tag(self._data, at)
            tag = group << 16 | number
            if tag == _SEQUENCE_END:
                if not spans:
                    raise DicomError(Reason.MALFORMED, f"Pixel Data at byte {at} has no offset table item")
                return tuple(spans), at, self._delimiter_end(at, end)
            if tag != _ITEM:
                raise DicomError(Reason.MALFORMED, f"{name(tag)} at byte {at} where a fragment must begin")
            if length & 1 or at + 8 + length > end:
                self._wrong_length(tag, at + 8, length, end)
            spans.append(Span(at + 8, length))
            at += 8 + length
            if len(spans) > self._limits.fragments_max:
                self._too_many("fragments", self._limits.fragments_max)
        raise DicomError(Reason.MALFORMED, f"the fragments that end at byte {at} have no delimiter")

    def _long_length(self, at: int, tag: int) -> int:
        reserved, length = self._length(self._data, at)
        if reserved:
            raise DicomError(Reason.MALFORMED, f"the reserved bytes of {name(tag)} at byte {at} are not zero")
        return int(length)

    def _delimiter_end(self, at: int, end: int) -> int:
        group, number, length = self._tag(self._data, at)
        if length or at + 8 > end:
            raise DicomError(Reason.MALFORMED, f"the delimiter {name(group << 16 | number)} at byte {at} has a length")
        return at + 8

    @staticmethod
    def _finished(found: list[Element]) -> tuple[Element, ...]:
        """Ascending order makes the first and the last tag stand for all (PS3.5 7.1)."""
        if found:
            first, last = found[0], found[-1]
            if first.tag >> 16 in _NOT_OF_A_DATA_SET:
                raise DicomError(Reason.MALFORMED, f"{name(first.tag)} at byte {first.start} is not for a data set")
            if last.tag > 0xFFFEFFFF:
                raise DicomError(Reason.MALFORMED, f"{name(last.tag)} at byte {last.start} is not for a data set")
        return tuple(found)

    @staticmethod
    def _ended(delimited: bool, at: int) -> None:
        if delimited:
            raise DicomError(Reason.MALFORMED, f"a delimiter is missing at byte {at}")

    @staticmethod
    def _misplaced(tag: int, found: list[Element], at: int) -> NoReturn:
        if tag >> 16 == 0xFFFE:
            raise DicomError(Reason.MALFORMED, f"{name(tag)} at byte {at} where a data element must begin")
        if any(element.tag == tag for element in found):
            raise DicomError(Reason.DUPLICATE_ELEMENT, f"{name(tag)} at byte {at} is there twice", tag=tag)
        raise DicomError(Reason.MALFORMED, f"{name(tag)} at byte {at} is out of order", tag=tag, fault="disorder")

    def _end_of_growing(self, tag: int, offset: int, length: int, scope: _Scope) -> int:
        """Where the Pixel Data of a file that is still growing will end; any other element has a wrong length."""
        if not self._growing or tag != PIXEL_DATA or scope.depth or length & 1:
            self._wrong_length(tag, offset, length, scope.end)
        return offset + length

    @staticmethod
    def _wrong_length(tag: int, offset: int, length: int, end: int) -> NoReturn:
        if length == _UNDEFINED:
            raise DicomError(Reason.MALFORMED, f"{name(tag)} before byte {offset} has no length")
        if offset + length > end:
            detail = f"{name(tag)} claims {length} bytes from byte {offset}, where {max(0, end - offset)} are left"
            raise DicomError(Reason.MALFORMED, detail)
        detail = f"{name(tag)} has an odd length, {length}, at byte {offset}"
        raise DicomError(Reason.MALFORMED, detail, tag=tag, fault="odd_length")

    @staticmethod
    def _too_many(what: str, allowed: int) -> NoReturn:
        raise DicomError(Reason.MALFORMED, f"more than {allowed} {what}")
