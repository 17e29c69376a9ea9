"""The head of a file for a data set that came without one (PS3.10 7.1); the data set's own bytes stay as they came."""

from __future__ import annotations

import struct

from gateway.receivers.upper_layer import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

_SHORT = struct.Struct("<HH2sH")
_LONG = struct.Struct("<HH2sHI")


def file_meta(sop_class: str, sop_instance: str, transfer_syntax: str) -> bytes:
    """Preamble, prefix and group 0002; the same for the same instance, so that the same scan has the same digest."""
    elements = _LONG.pack(2, 0x0001, b"OB", 0, 2) + b"\x00\x01"
    for element, vr, value in (
        (0x0002, b"UI", sop_class),
        (0x0003, b"UI", sop_instance),
        (0x0010, b"UI", transfer_syntax),
        (0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
        (0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
    ):
        encoded = value.encode("ascii")
        encoded += (b"\0" if vr == b"UI" else b" ") * (len(encoded) % 2)
        elements += _SHORT.pack(2, element, vr, len(encoded)) + encoded
    return bytes(128) + b"DICM" + _SHORT.pack(2, 0, b"UL", 4) + struct.pack("<I", len(elements)) + elements
