"""Reads file meta information: preamble, prefix and group 0002 (PS3.10 7.1)."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from signing.dictionary import VR_FORMS, name
from signing.errors import DicomError
from signing.reasons import Reason

GROUP_LENGTH = 0x00020000
MEDIA_STORAGE_SOP_CLASS_UID = 0x00020002
MEDIA_STORAGE_SOP_INSTANCE_UID = 0x00020003
TRANSFER_SYNTAX_UID = 0x00020010

_GROUP_BYTES_MAX = 65536  # ten short elements, and private information that nobody reads
_FIRST = 132  # preamble (128 bytes), "DICM"
_HEADER = struct.Struct("<HH2sH")
_UID = re.compile(rb"[0-9]+(?:\.[0-9]+)*")


class FileMeta(NamedTuple):
    """What the file says about itself; no signature covers it."""

    transfer_syntax: str
    values: Mapping[int, bytes]


def read_file_meta(data: memoryview) -> tuple[FileMeta, int]:
    """Read group 0002, always explicit VR little endian; returns it and the offset of the data set."""
    if len(data) < _FIRST + 12 or bytes(data[128:_FIRST]) != b"DICM":
        raise DicomError(Reason.MALFORMED, "not a DICOM file: no preamble with the prefix DICM")
    if bytes(data[_FIRST : _FIRST + 8]) != b"\x02\x00\x00\x00UL\x04\x00":
        raise DicomError(Reason.MALFORMED, "the file meta information does not begin with its group length")
    start = _FIRST + 12
    end = start + int.from_bytes(data[start - 4 : start], "little")
    if end > min(len(data), start + _GROUP_BYTES_MAX):
        raise DicomError(Reason.MALFORMED, f"the file meta information claims {end - start} bytes")
    if bytes(data[end : end + 2]) == b"\x02\x00":
        raise DicomError(Reason.MALFORMED, "the group length of the file meta information is too small")

    values = _elements(data, start, end)
    syntax = values.get(TRANSFER_SYNTAX_UID, b"")
    if not _UID.fullmatch(syntax) or len(syntax) > 64:
        raise DicomError(Reason.MALFORMED, "the file meta information has no transfer syntax")
    return FileMeta(syntax.decode("ascii"), MappingProxyType(values)), end


def _elements(data: memoryview, at: int, end: int) -> dict[int, bytes]:
    values: dict[int, bytes] = {}
    last = GROUP_LENGTH
    while at < end:
        if at + 8 > end:
            raise DicomError(Reason.MALFORMED, f"the file meta information ends within a header at byte {at}")
        group, number, code, length = _HEADER.unpack_from(data, at)
        tag = group << 16 | number
        if group != 2:
            raise DicomError(Reason.MALFORMED, f"{name(tag)} at byte {at} within the file meta information")
        if tag <= last:
            reason = Reason.DUPLICATE_ELEMENT if tag in values else Reason.MALFORMED
            raise DicomError(reason, f"{name(tag)} at byte {at} is there twice or out of order")
        last = tag
        form = VR_FORMS.get(code)
        if form is None:
            raise DicomError(Reason.MALFORMED, f"{name(tag)} at byte {at} has no valid VR")
        offset = at + form[1]
        if form[1] == 12:
            length = int.from_bytes(data[at + 8 : at + 12], "little")
        at = offset + length
        if at > end:
            raise DicomError(Reason.MALFORMED, f"{name(tag)} claims {length} bytes, more than the group has")
        values[tag] = bytes(data[offset:at]).rstrip(b" \0") if form[0] == "UI" else bytes(data[offset:at])
    return values
