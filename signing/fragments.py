"""Encapsulated Pixel Data: does its structure, which no MAC covers, still say what the signed attributes say?

A MAC runs over fragments without their lengths (PS3.3 C.12.1.1.3.1.2), so fragments can be merged, split at
bytes that look like an item tag, or moved into the offset table, and still verify. These checks close that.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import NoReturn

from signing.dataset import DataSet
from signing.dictionary import (
    EXTENDED_OFFSET_TABLE,
    EXTENDED_OFFSET_TABLE_LENGTHS,
    NUMBER_OF_FRAMES,
    PIXEL_DATA,
    name,
)
from signing.errors import DicomError, SignatureError
from signing.reasons import Reason

_RLE = "1.2.840.10008.1.2.5"
_JPEG = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.(5[0-9]|6[0-6]|70|8[01])")
_JPEG_2000 = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.(9[0-3]|20[1-3])")
_VIDEO = re.compile(r"1\.2\.840\.10008\.1\.2\.4\.10[0-9](\.1)?")
_ITEM_LIKE = re.compile(rb"\xfe\xff(?:\x00|\xdd)\xe0")
_END_OF_IMAGE = b"\xff\xd9"
_FRAMES_MAX = 100_000


def check_structure(signed: DataSet, transfer_syntax: str) -> None:
    """Fragments and offset tables give exactly Number of Frames, each frame whole.

    Raises:
        SignatureError: `fragment_structure`.
    """
    parts = signed.fragments()
    if not parts:
        return
    table, fragments = parts[0], parts[1:]
    fixed = _extended_frames(signed, fragments)
    if fixed is None and any(holds_item(part) for part in parts):
        _refuse("a fragment holds what may have been the border between two")
    if _VIDEO.fullmatch(transfer_syntax):
        if len(table):
            _refuse("a video stream has an offset table")
        return
    frames = fixed if fixed is not None else _frames(table, fragments, _frame_count(signed))
    if len(frames[-1]) > 1 and not _is_cut_evenly(frames[-1]):  # an earlier one's length the offset table fixes
        _refuse("the last frame may have been cut in two where its data looked like a border")
    for frame in frames:
        if not _is_whole(frame, transfer_syntax):
            _refuse("a frame does not begin and end as its coding must")


def _frame_count(signed: DataSet) -> int:
    try:
        count = signed.integer(NUMBER_OF_FRAMES)
    except DicomError:
        count = 0
    if count is None:
        return 1
    if not 1 <= count <= _FRAMES_MAX:
        _refuse(f"{name(NUMBER_OF_FRAMES)} is out of range")
    return count


def _frames(table: memoryview, fragments: Sequence[memoryview], count: int) -> list[Sequence[memoryview]]:
    """Fragments grouped by frame (PS3.5 A.4): by the Basic Offset Table, else one each, else all one frame's."""
    if len(table):
        if len(table) != 4 * count:
            _refuse(f"the offset table has {len(table)} bytes for {count} frames")
        return _at_offsets(struct.unpack(f"<{count}I", table), fragments)
    if count == 1:
        return [fragments]
    if len(fragments) != count:
        _refuse(f"{len(fragments)} fragments for {count} frames, and no offset table")
    return [(fragment,) for fragment in fragments]


def _at_offsets(offsets: Sequence[int], fragments: Sequence[memoryview]) -> list[Sequence[memoryview]]:
    starts: dict[int, int] = {}
    at = 0
    for place, fragment in enumerate(fragments):
        starts[at] = place
        at += 8 + len(fragment)
    places = [starts.get(offset, -1) for offset in offsets]
    if not places or places[0] != 0 or any(later <= earlier for earlier, later in pairwise(places)):
        _refuse("the offset table does not point at the frames' fragments in order")
    return [fragments[first:after] for first, after in zip(places, [*places[1:], len(fragments)], strict=True)]


def _extended_frames(signed: DataSet, fragments: Sequence[memoryview]) -> list[Sequence[memoryview]] | None:
    """One fragment a frame, its length fixed by a signed Extended Offset Table (PS3.3 C.7.6.3); None without one."""
    if EXTENDED_OFFSET_TABLE not in signed or EXTENDED_OFFSET_TABLE_LENGTHS not in signed:
        return None
    count = _frame_count(signed)
    offsets, lengths = signed.value(EXTENDED_OFFSET_TABLE), signed.value(EXTENDED_OFFSET_TABLE_LENGTHS)
    if not len(offsets) == len(lengths) == 8 * count == 8 * len(fragments):
        _refuse("the Extended Offset Table does not fit the fragments")
    frames = _at_offsets(struct.unpack(f"<{count}Q", offsets), fragments)
    for frame, length in zip(frames, struct.unpack(f"<{count}Q", lengths), strict=True):
        if len(frame) != 1 or not 0 <= len(frame[0]) - length <= 1:
            _refuse("the Extended Offset Table does not fit the fragments")
    return frames


def _is_cut_evenly(frame: Sequence[memoryview]) -> bool:
    """Encoders cut a frame at one length, which between two fragments alone must also be round.

    Whoever takes four bytes that look like a border out of a frame, so that one fragment becomes two, cannot choose
    where they are.
    """
    *whole, rest = map(len, frame)
    is_round = len(whole) > 1 or 0 in (whole[0] % 1000, whole[0] % 1024)
    return set(whole) == {whole[0]} and rest <= whole[0] and is_round


def holds_item(part: memoryview) -> bool:
    """At an even offset, since fragments have even lengths."""
    return any(found.start() % 2 == 0 for found in _ITEM_LIKE.finditer(part))


def _is_whole(frame: Sequence[memoryview], transfer_syntax: str) -> bool:
    if not frame or not len(frame[0]):
        return False
    head, tail = bytes(frame[0][:64]), bytes(frame[-1][-16:])
    if transfer_syntax == _RLE:  # PS3.5 G.5: 64 bytes, 1 to 15 segments, the first right after
        if len(head) < 64:
            return False
        segments, first = struct.unpack("<2I", head[:8])
        return bool(1 <= segments <= 15 and first == 64)
    if _JPEG.fullmatch(transfer_syntax):
        return head.startswith(b"\xff\xd8") and _ends(tail)
    if _JPEG_2000.fullmatch(transfer_syntax):
        return head.startswith((b"\xff\x4f", b"\0\0\0\x0cjP  ")) and _ends(tail)
    return True


def _ends(tail: bytes) -> bool:
    """EOI of JPEG, EOC of JPEG 2000; then zeros, or one padding byte of whatever value encoders choose."""
    return tail[:-1].endswith(_END_OF_IMAGE) or tail.rstrip(b"\0").endswith(_END_OF_IMAGE)


def _refuse(detail: str) -> NoReturn:
    raise SignatureError(Reason.FRAGMENT_STRUCTURE, f"{name(PIXEL_DATA)}: {detail}")
