"""The place where two objects differ is named, without a value."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import signing
from signing import read
from signing.diff import Kind, _first_difference, differences
from signing.testing import Hospital, flip_pixel_bit, replace_value, without

PATIENT_ID = 0x00100020


def found(a: bytes, b: bytes) -> list[tuple[Kind, str, int | None]]:
    return [(each.kind, each.path, each.offset) for each in differences(read(a), read(b))]


def test_an_object_does_not_differ_from_itself_signed(ct: bytes, hospital: Hospital, now: datetime) -> None:
    assert found(ct, signing.sign(ct, signer=hospital.signer("ct"), at=now)) == []


@pytest.mark.parametrize("name", ["MR_small_implicit.dcm", "MR_small_bigendian.dcm"])
def test_encodings_with_the_same_canonical_bytes_do_not_differ(
    name: str, mr: bytes, bundled: Callable[[str], bytes]
) -> None:
    assert found(mr, bundled(name)) == []
    at = next(each.offset for each in read(bundled(name)) if each.tag == 0x7FE00010)
    changed = bytearray(bundled(name))
    changed[at + 4000] ^= 1
    swapped = 4001 if "big" in name else 4000
    assert found(mr, bytes(changed)) == [(Kind.VALUE, "PixelData", swapped)]


def test_every_kind_is_told_apart(ct: bytes) -> None:
    assert found(ct, flip_pixel_bit(ct, 700)) == [(Kind.VALUE, "PixelData", 700)]
    assert found(ct, without(ct, PATIENT_ID)) == [(Kind.ABSENT_IN_B, "PatientID", None)]
    assert found(without(ct, PATIENT_ID), ct) == [(Kind.ABSENT_IN_A, "PatientID", None)]
    element = read(ct).get(PATIENT_ID)
    assert element is not None
    shorter = ct[: element.start + 6] + b"\x02\0" + ct[element.offset : element.offset + 2] + ct[element.end :]
    assert found(ct, shorter) == [(Kind.LENGTH, "PatientID", 2)]
    other_vr = ct[: element.start + 4] + b"SH" + ct[element.start + 6 :]
    assert found(ct, other_vr) == [(Kind.VR, "PatientID", None)]


def test_differences_come_in_the_order_of_the_data_set(ct: bytes) -> None:
    changed = replace_value(flip_pixel_bit(ct), PATIENT_ID, b"2CT1")
    assert [path for _, path, _ in found(ct, changed)] == ["PatientID", "PixelData"]


def test_nested_elements_and_fragments_have_a_path(bundled: Callable[[str], bytes]) -> None:
    report = bundled("test-SR.dcm")
    (content,) = [each for each in read(report) if each.tag == 0x0040A730]
    assert content.items is not None
    inner = next(each for each in content.items[1] if each.items is None and each.length)
    changed = bytearray(report)
    changed[inner.offset] ^= 1
    (one,) = found(report, bytes(changed))
    assert (one[0], one[1].split(".")[0], one[2]) == (Kind.VALUE, "ContentSequence[1]", 0)

    compressed = bundled("MR_small_RLE.dcm")
    assert found(compressed, flip_pixel_bit(compressed, 900)) == [(Kind.VALUE, "PixelData[1]", 900)]
    assert [kind for kind, *_ in found(compressed, bundled("MR_small.dcm"))] == [Kind.VR]


def test_values_are_shown_only_where_asked_for(ct: bytes) -> None:
    (one,) = differences(read(ct), read(replace_value(ct, PATIENT_ID, b"2CT1")))
    assert "value_a" not in one.as_json(show_values=False)
    assert one.as_json(show_values=True)["value_b"] == "2CT1"
    assert "2CT1" not in repr(one)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_the_offset_is_that_of_the_first_byte_that_differs(a: bytes, b: bytes) -> None:
    expected = next((at for at, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1]), min(len(a), len(b)))
    assert _first_difference(a, b) == expected
