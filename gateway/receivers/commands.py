"""Command sets of C-ECHO and C-STORE (PS3.7 9.3, annex E): implicit VR little endian, a dozen fields that are used."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

C_STORE_RQ, C_ECHO_RQ, C_CANCEL_RQ = 0x0001, 0x0030, 0x0FFF
COMMAND_BYTES_MAX = 4096
"""Of one command set; a C-STORE-RQ has about 200."""

_GROUP_LENGTH = 0x0000
_SOP_CLASS, _SOP_INSTANCE = 0x0002, 0x1000
_FIELD, _MESSAGE_ID, _RESPONDED_TO, _DATA_SET_TYPE = 0x0100, 0x0110, 0x0120, 0x0800
_STATUS, _COMMENT = 0x0900, 0x0902
_RESPONSE = 0x8000
_NO_DATA_SET = 0x0101
_COMMENT_CHARACTERS_MAX = 64
_ELEMENT = struct.Struct("<HHI")
_NUMBER = struct.Struct("<H")
_UID = re.compile(rb"[0-9.]{1,64}")


class CommandError(Exception):
    """The command set is not one."""


@dataclass(frozen=True, slots=True)
class Command:
    """One request."""

    field: int
    message_id: int
    sop_class: str
    sop_instance: str
    """Empty where the command has none."""
    has_data_set: bool

    @classmethod
    def read(cls, data: bytes | bytearray) -> Command:
        """Decode a command set; raises `CommandError` where it is no request."""
        values: dict[int, bytes] = {}
        at = 0
        while at < len(data):
            if at + _ELEMENT.size > len(data):
                raise CommandError
            group, element, length = _ELEMENT.unpack_from(data, at)
            at += _ELEMENT.size
            if group != 0 or element in values or at + length > len(data):
                raise CommandError
            values[element] = bytes(data[at : at + length])
            at += length
        field = _number(values, _FIELD)
        if field & _RESPONSE:
            raise CommandError
        return cls(
            field,
            0 if field == C_CANCEL_RQ else _number(values, _MESSAGE_ID),
            _uid(values, _SOP_CLASS),
            _uid(values, _SOP_INSTANCE),
            _number(values, _DATA_SET_TYPE) != _NO_DATA_SET,
        )

    def response(self, status: int, comment: str = "") -> bytes:
        """The response to this request; `comment` holds no header value of a scan."""
        elements = [
            (_SOP_CLASS, _padded(self.sop_class.encode(), b"\0")),
            (_FIELD, _NUMBER.pack(self.field | _RESPONSE)),
            (_RESPONDED_TO, _NUMBER.pack(self.message_id)),
            (_DATA_SET_TYPE, _NUMBER.pack(_NO_DATA_SET)),
            (_STATUS, _NUMBER.pack(status)),
            (_COMMENT, _padded(comment[:_COMMENT_CHARACTERS_MAX].encode("ascii", "replace"), b" ")),
            (_SOP_INSTANCE, _padded(self.sop_instance.encode(), b"\0")),
        ]
        body = b"".join(_ELEMENT.pack(0, tag, len(value)) + value for tag, value in elements if value)
        return _ELEMENT.pack(0, _GROUP_LENGTH, 4) + struct.pack("<I", len(body)) + body


def _number(values: dict[int, bytes], tag: int) -> int:
    value = values.get(tag, b"")
    if len(value) != _NUMBER.size:
        raise CommandError
    number: int = _NUMBER.unpack(value)[0]
    return number


def _uid(values: dict[int, bytes], tag: int) -> str:
    value = values.get(tag, b"").rstrip(b"\0 ")
    if value and not _UID.fullmatch(value):
        raise CommandError
    return value.decode("ascii")


def _padded(value: bytes, padding: bytes) -> bytes:
    return value + padding if len(value) % 2 else value
