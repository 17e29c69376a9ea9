"""Hashing while bytes arrive changes when the work is done, and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import signing
from signing import DicomError, SignatureError
from signing.hashed import Hashed
from signing.streaming import Incoming
from signing.testing import Hospital, flip_pixel_bit, replace_value

PIXEL_DATA, PATIENT_ID = 0x7FE00010, 0x00100020


@pytest.fixture(scope="module")
def signed(hospital: Hospital, ct: bytes, now: datetime) -> bytes:
    return signing.sign(ct, signer=hospital.signer("mr"), at=now)


def arrive(data: bytes, beginning: int, *cuts: int) -> Hashed | None:
    """What was hashed of an object that came in these pieces."""
    incoming = Incoming(data[:beginning])
    for start, end in zip((beginning, *cuts), (*cuts, len(data)), strict=True):
        incoming.write(data[start:end])
    return incoming.hashed()


def header_end(data: bytes) -> int:
    element = signing.read(data).get(PIXEL_DATA)
    assert element is not None
    return element.offset


def verdict(data: bytes, hashed: Hashed | None, hospital: Hospital, now: datetime) -> tuple[str, str]:
    try:
        found = signing.verify(signing.read(data, hashed=hashed), hospital.trust(), at=now)
    except (DicomError, SignatureError) as error:
        return str(error.reason), ""
    return "ok", found.signed_digest


def test_the_digest_is_the_same_and_pixels_are_not_hashed_again(
    signed: bytes, hospital: Hospital, now: datetime
) -> None:
    hashed = arrive(signed, header_end(signed) + 100, 20_000, 30_000)
    assert hashed is not None
    assert verdict(signed, hashed, hospital, now) == verdict(signed, None, hospital, now)
    changed = flip_pixel_bit(signed, 5000)  # would be noticed if these bytes were looked at now
    assert verdict(changed, hashed, hospital, now)[0] == "ok"


@pytest.mark.parametrize(
    "change",
    [lambda data: flip_pixel_bit(data, 5000), lambda data: replace_value(data, PATIENT_ID, b"2CT1")],
    ids=["pixel", "patient"],
)
def test_what_was_changed_before_it_arrived_is_noticed(
    change: Callable[[bytes], bytes], signed: bytes, hospital: Hospital, now: datetime
) -> None:
    changed = change(signed)
    assert verdict(changed, arrive(changed, header_end(signed)), hospital, now)[0] == "mac_mismatch"


def test_a_hash_of_other_byte_ranges_is_not_taken(signed: bytes, ct: bytes, hospital: Hospital, now: datetime) -> None:
    """Not even for an object with the same list: what counts is which bytes were hashed."""
    hashed = arrive(signed, header_end(signed))
    element = signing.read(ct).get(0x00081030)
    assert element is not None
    shifted = ct[: element.start] + struct.pack("<HH2sH", 0x0008, 0x1030, b"LO", 2) + b"X " + ct[element.end :]
    forged = flip_pixel_bit(signing.sign(shifted, signer=hospital.signer("mr"), at=now), 5000)
    assert verdict(forged, hashed, hospital, now)[0] == "mac_mismatch"


@pytest.mark.parametrize("beginning", [0, 100, 140, 4000])
def test_an_object_whose_header_had_not_come_is_not_followed(beginning: int, signed: bytes) -> None:
    assert arrive(signed, beginning) is None


def test_an_object_that_was_cut_off_has_no_hash(signed: bytes) -> None:
    incoming = Incoming(signed[: header_end(signed)])
    incoming.write(signed[header_end(signed) : header_end(signed) + 500])
    assert incoming.hashed() is None


@pytest.mark.parametrize(
    "name", ["MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "image_dfl.dcm", "test-SR.dcm"]
)
def test_other_objects_are_left_to_verification(
    name: str, hospital: Hospital, now: datetime, bundled: Callable[[str], bytes]
) -> None:
    profile = "sr" if "SR" in name else "inference"
    data = signing.sign(bundled(name), signer=hospital.signer("mr"), profile=profile, at=now)
    assert arrive(data, len(data) // 2) is None


def test_an_unsigned_object_is_not_hashed(ct: bytes) -> None:
    assert arrive(ct, header_end(ct)) is None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_however_it_arrives_the_verdict_is_the_same(
    data: st.DataObject, signed: bytes, hospital: Hospital, now: datetime
) -> None:
    changed = bytearray(signed)
    for place in data.draw(st.lists(st.integers(144, len(signed) - 1), max_size=2)):
        changed[place] ^= data.draw(st.integers(1, 255))
    beginning = data.draw(st.integers(0, len(changed)))
    cuts = sorted(data.draw(st.lists(st.integers(beginning, len(changed)), max_size=4)))
    hashed = arrive(bytes(changed), beginning, *cuts)
    assert verdict(bytes(changed), hashed, hospital, now) == verdict(bytes(changed), None, hospital, now)
