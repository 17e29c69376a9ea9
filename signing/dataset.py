"""A data set as byte ranges: elements, and readers that decode header values safely."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn, TypeVar

from signing.dictionary import PIXEL_DATA, SPECIFIC_CHARACTER_SET, TEXT_VRS, name
from signing.errors import DicomError
from signing.reasons import Reason

_T = TypeVar("_T")

VALUE_BYTES_MAX = 65534  # a header value: all that a VR with a 16-bit length can hold


class Span(NamedTuple):
    """A byte range of the data set's buffer."""

    offset: int
    length: int


class Element(NamedTuple):
    """One data element, as byte ranges of its data set's buffer; no value is copied or decoded."""

    tag: int
    """Group in the upper, element in the lower 16 bits."""
    vr: str
    """As the file says; for implicit VR as the dictionary says."""
    start: int
    """Of the tag."""
    offset: int
    """Of the value, or of the first item."""
    length: int
    """Of the value in bytes; of the items, without their delimiter, where the length was undefined."""
    end: int
    """Of whatever follows this element."""
    items: tuple[tuple[Element, ...], ...] | None
    """SQ, and UN of undefined length: the elements of each item."""
    fragments: tuple[Span, ...] | None
    """Encapsulated Pixel Data: the Basic Offset Table, then the fragments."""


@dataclass(frozen=True, slots=True, eq=False)
class DataSet:
    """Elements over a buffer.

    Readers return None where the attribute is absent or empty, and raise
    `DicomError` (malformed) where its value has another form than the reader's.
    """

    data: memoryview
    """The buffer that every byte range refers to."""
    elements: tuple[Element, ...]
    """In ascending order of tag, no tag twice."""
    little_endian: bool
    charset: str
    """Specific Character Set's Python codec."""
    _by_tag: Mapping[int, Element] = field(repr=False)

    def get(self, tag: int) -> Element | None:
        """The element with this tag, or None."""
        return self._by_tag.get(tag)

    def value(self, tag: int) -> memoryview:
        """The value's bytes as stored, uncopied; empty where absent."""
        element = self._by_tag.get(tag)
        return self.data[0:0] if element is None else self.data[element.offset : element.offset + element.length]

    def fragments(self, tag: int = PIXEL_DATA) -> tuple[memoryview, ...]:
        """The Basic Offset Table and the fragments of encapsulated Pixel Data; empty where native or absent."""
        element = self._by_tag.get(tag)
        spans = () if element is None else element.fragments or ()
        return tuple(self.data[span.offset : span.offset + span.length] for span in spans)

    def items(self, tag: int) -> tuple[DataSet, ...]:
        """The items of a sequence; empty where absent."""
        element = self._by_tag.get(tag)
        if element is None:
            return ()
        if element.vr != "SQ" or element.items is None:
            _wrong_vr(element, "a sequence")
        return tuple(data_set(self.data, item, self.little_endian, self.charset) for item in element.items)

    def text(self, tag: int) -> str | None:
        """The only value of a text attribute, without padding."""
        values = self.texts(tag)
        return _only(values, tag) if values else None

    def texts(self, tag: int) -> tuple[str, ...]:
        """The values of a text attribute, without padding; empty where absent."""
        element = self._by_tag.get(tag)
        if element is None:
            return ()
        if element.vr not in TEXT_VRS:
            _wrong_vr(element, "text")
        codec = self.charset if element.vr in _LOCAL_VRS else "ascii"
        text = self._short(element).decode(codec, "replace").rstrip(" \0")
        if not text:
            return ()
        if element.vr in {"LT", "ST", "UT", "UR"}:  # PS3.5 6.2: the backslash is an ordinary character here
            return (text,)
        return tuple(part.strip(" ") for part in text.split("\\"))

    def uid(self, tag: int) -> str | None:
        """A well-formed UID (PS3.5 9.1)."""
        text = self.text(tag)
        if text is not None and (len(text) > 64 or not _UID.fullmatch(text)):
            raise DicomError(Reason.MALFORMED, f"{name(tag)} is not a UID")
        return text

    def integer(self, tag: int) -> int | None:
        """The only value of an integer attribute."""
        values = self.integers(tag)
        return _only(values, tag) if values else None

    def integers(self, tag: int) -> tuple[int, ...]:
        """The values of US, SS, UL, SL, UV, SV or IS; empty where absent."""
        element = self._by_tag.get(tag)
        if element is None or not element.length:
            return ()
        if element.vr == "IS":
            return tuple(int(text) for text in self._numbers(tag, _INTEGER))
        return tuple(int(number) for number in self._binary(element, _INTEGER_CODES, "an integer"))

    def decimal(self, tag: int) -> float | None:
        """The only value of a numeric attribute; always finite."""
        values = self.decimals(tag)
        return _only(values, tag) if values else None

    def decimals(self, tag: int) -> tuple[float, ...]:
        """The values of DS, FL, FD or an integer VR, all finite; empty where absent."""
        element = self._by_tag.get(tag)
        if element is None or not element.length:
            return ()
        if element.vr in {"DS", "IS"}:
            values = tuple(float(text) for text in self._numbers(tag, _DECIMAL))
        else:
            values = tuple(float(number) for number in self._binary(element, _NUMBER_CODES, "a number"))
        if not all(map(math.isfinite, values)):
            raise DicomError(Reason.MALFORMED, f"{name(tag)} is not a finite number")
        return values

    def __iter__(self) -> Iterator[Element]:
        return iter(self.elements)

    def __len__(self) -> int:
        return len(self.elements)

    def __contains__(self, tag: object) -> bool:
        return tag in self._by_tag

    def _short(self, element: Element) -> bytes:
        if element.length > VALUE_BYTES_MAX:
            raise DicomError(Reason.MALFORMED, f"{name(element.tag)} has {element.length} bytes, too long for a header")
        return bytes(self.data[element.offset : element.offset + element.length])

    def _numbers(self, tag: int, form: re.Pattern[str]) -> tuple[str, ...]:
        texts = self.texts(tag)
        if not all(map(form.fullmatch, texts)):
            raise DicomError(Reason.MALFORMED, f"{name(tag)} is not a number")
        return texts

    def _binary(self, element: Element, codes: Mapping[str, str], wanted: str) -> tuple[float | int, ...]:
        code = codes.get(element.vr)
        if code is None:
            _wrong_vr(element, wanted)
        value = self._short(element)
        count, rest = divmod(len(value), struct.calcsize("=" + code))
        if rest:
            raise DicomError(Reason.MALFORMED, f"{name(element.tag)} has {len(value)} bytes, no multiple of its unit")
        return struct.unpack(f"{'<' if self.little_endian else '>'}{count}{code}", value)


def data_set(data: memoryview, elements: tuple[Element, ...], little_endian: bool, charset: str) -> DataSet:
    """A data set over `data`; its own Specific Character Set, where it has one, replaces `charset`."""
    return DataSet(data, elements, little_endian, codec_of(data, elements, charset), index(elements))


def index(elements: tuple[Element, ...]) -> dict[int, Element]:
    """Elements by tag."""
    return {element[0]: element for element in elements}


def codec_of(data: memoryview, elements: tuple[Element, ...], outer: str = "ascii") -> str:
    """The codec of Specific Character Set (PS3.3 C.12.1.1.2); code extensions are not followed."""
    for element in elements:
        if element.tag > SPECIFIC_CHARACTER_SET:
            break
        if element.tag == SPECIFIC_CHARACTER_SET and element.length <= VALUE_BYTES_MAX:
            value = bytes(data[element.offset : element.offset + element.length]).decode("ascii", "replace")
            first = value.split("\\")[0].strip(" \0").replace("ISO 2022 IR", "ISO_IR")
            return _CODECS.get(first, "ascii")
    return outer


def _only(values: tuple[_T, ...], tag: int) -> _T:
    if len(values) != 1:
        raise DicomError(Reason.MALFORMED, f"{name(tag)} has {len(values)} values where one is allowed")
    return values[0]


def _wrong_vr(element: Element, wanted: str) -> NoReturn:
    raise DicomError(Reason.MALFORMED, f"{name(element.tag)} has VR {element.vr}, which is not {wanted}")


_UID = re.compile(r"(?:0|[1-9][0-9]*)(?:\.(?:0|[1-9][0-9]*))*", re.ASCII)
_INTEGER = re.compile(r"[+-]?[0-9]{1,12}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?(?:[0-9]{1,32}(?:\.[0-9]{0,32})?|\.[0-9]{1,32})(?:[eE][+-]?[0-9]{1,4})?", re.ASCII)
_INTEGER_CODES = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q"}
_NUMBER_CODES = {**_INTEGER_CODES, "FL": "f", "FD": "d"}
_LOCAL_VRS = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UT"))
_CODECS = {
    "": "ascii",
    "ISO_IR 6": "ascii",
    "ISO_IR 13": "shift_jis",
    "ISO_IR 100": "latin_1",
    "ISO_IR 101": "iso8859_2",
    "ISO_IR 109": "iso8859_3",
    "ISO_IR 110": "iso8859_4",
    "ISO_IR 126": "iso8859_7",
    "ISO_IR 127": "iso8859_6",
    "ISO_IR 138": "iso8859_8",
    "ISO_IR 144": "iso8859_5",
    "ISO_IR 148": "iso8859_9",
    "ISO_IR 166": "tis_620",
    "ISO_IR 192": "utf_8",
    "ISO_IR 203": "iso8859_15",
    "GB18030": "gb18030",
    "GBK": "gbk",
}
