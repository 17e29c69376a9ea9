"""What a stranger makes long in the signature macros is refused before it costs anything: no key is needed to try."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from datetime import datetime

import pytest

import signing
from signing import DicomError, Reason, SignatureError, read
from signing.dataset import Element
from signing.dictionary import DIGITAL_SIGNATURES_SEQUENCE, MAC_PARAMETERS_SEQUENCE
from signing.mac import ELEMENTS_SIGNED, TIMESTAMP, TIMESTAMP_TYPE
from signing.testing import Hospital

MIB = 2**20
IMPLICIT, CLASS, INSTANCE = b"1.2.840.10008.1.2\0", b"1.2.840.10008.5.1.4.1.1.7\0", b"1.2.3\0"


def implicit(tag: int, value: bytes) -> bytes:
    return struct.pack("<HHI", tag >> 16, tag & 0xFFFF, len(value)) + value


def item(*elements: bytes) -> bytes:
    return implicit(0xFFFEE000, b"".join(elements))


@pytest.fixture(scope="module")
def signed(hospital: Hospital, now: datetime) -> bytes:
    """An object in implicit VR, where any value may have 4 GiB; a stranger's."""
    meta = b"\x02\0\x10\0UI" + struct.pack("<H", len(IMPLICIT)) + IMPLICIT
    length = b"\x02\0\0\0UL\x04\0" + struct.pack("<I", len(meta))
    data_set = implicit(0x00080016, CLASS) + implicit(0x00080018, INSTANCE)
    plain = bytes(128) + b"DICM" + length + meta + data_set
    return signing.sign(plain, signer=hospital.signer("stranger"), profile="base", at=now)


def with_items(data: bytes, sequence: int, *items: bytes) -> bytes:
    found = read(data).get(sequence)
    assert found is not None
    return data[: found.start] + implicit(sequence, b"".join(items)) + data[found.end :]


def stored(data: bytes, sequence: int, changed: dict[int, bytes]) -> bytes:
    """The first item of a sequence, with other values."""
    elements = read(data)
    first: tuple[Element, ...] = elements.items(sequence)[0].elements
    values = {each.tag: bytes(elements.data[each.offset : each.end]) for each in first if each.items is None}
    return item(*(implicit(tag, value) for tag, value in sorted({**values, **changed}.items())))


def long_list(signed: bytes) -> bytes:
    tags = b"".join(struct.pack("<HH", 0x0011, number) for number in range(1, 0x10000)) * 64
    return with_items(signed, MAC_PARAMETERS_SEQUENCE, stored(signed, MAC_PARAMETERS_SEQUENCE, {ELEMENTS_SIGNED: tags}))


def long_time_stamp(signed: bytes) -> bytes:
    changed = {TIMESTAMP_TYPE: b"CMS_TSP ", TIMESTAMP: bytes(16 * MIB)}
    return with_items(signed, DIGITAL_SIGNATURES_SEQUENCE, stored(signed, DIGITAL_SIGNATURES_SEQUENCE, changed))


def long_instance(signed: bytes) -> bytes:
    meta = b"\x02\0\x03\0UI" + struct.pack("<H", len(INSTANCE)) + INSTANCE
    named = signed[:140] + struct.pack("<I", 26 + len(meta)) + meta + signed[144:]
    at = named.index(implicit(0x00080018, INSTANCE))
    return named[:at] + implicit(0x00080018, INSTANCE[:-1] + bytes(16 * MIB + 1)) + named[at + 14 :]


def many_parameters(signed: bytes) -> bytes:
    first = stored(signed, MAC_PARAMETERS_SEQUENCE, {})
    return with_items(signed, MAC_PARAMETERS_SEQUENCE, first, *[item()] * 300)


@pytest.mark.parametrize(
    ("flood", "reason"),
    [
        (long_list, Reason.DATA_ELEMENTS_SIGNED),
        (long_time_stamp, Reason.UNTRUSTED),
        (long_instance, Reason.FILE_META_MISMATCH),
        (many_parameters, Reason.MALFORMED),
    ],
)
def test_a_long_value_is_refused_without_a_copy_of_it(
    flood: Callable[[bytes], bytes], reason: Reason, signed: bytes, hospital: Hospital, now: datetime
) -> None:
    data, trust = flood(signed), hospital.trust()
    tracemalloc.start()
    try:
        with pytest.raises((SignatureError, DicomError)) as refused:
            signing.verify(read(data), trust, at=now)
        assert refused.value.reason is reason
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()
