"""Lint foresees what verification and signing then say, and shows no value."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

import signing
from signing import SignError, TrustPolicy, read
from signing.lint import FINDINGS_MAX, Code, Finding, Severity, is_readable, lint
from signing.testing import Hospital, without

SECRET = b"SECRETVALUE"


def short(tag: int, vr: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(value)) + value


def long(tag: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    size = len(value) if length is None else length
    return struct.pack("<HH2sxxI", tag >> 16, tag & 0xFFFF, vr, size) + value


def item(content: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(content)) + content


def put(data: bytes, tag: int, encoded: bytes, *, before: int | None = None) -> bytes:
    """With an element at its place among the tags, or before another."""
    wanted = tag if before is None else before
    at = next((each.start for each in read(data) if each.tag > wanted or each.tag == before), len(data))
    return data[:at] + encoded + data[at:]


def codes(findings: tuple[Finding, ...]) -> set[Code]:
    return {finding.code for finding in findings}


def with_another_file_meta(data: bytes) -> bytes:
    uid = read(data).meta[0x00020003]
    return data.replace(uid, uid[:-1] + (b"1" if uid[-1:] != b"1" else b"2"), 1)


SEQUENCE = 0x00081115
NESTED_BIG = long(SEQUENCE, b"SQ", item(long(0x00081140, b"SQ", item(long(0x00081195, b"UT", b"x" * 17000)))))
CASES: list[tuple[Code, Callable[[bytes], bytes]]] = [
    (Code.ODD_LENGTH, lambda ct: put(ct, 0x00104000, short(0x00104000, b"LT", SECRET))),
    (Code.DISORDER, lambda ct: put(ct, 0x00104000, short(0x00104000, b"LT", SECRET + b" "), before=0x00100010)),
    (Code.DUPLICATE_ELEMENT, lambda ct: put(ct, 0x00100020, short(0x00100020, b"LO", SECRET + b" "))),
    (Code.MALFORMED, lambda ct: ct[:-7]),
    (Code.FILE_META_MISMATCH, with_another_file_meta),
    (Code.REQUIRED_ATTRIBUTE_ABSENT, lambda ct: without(ct, 0x00100020)),
    (Code.REQUIRED_ATTRIBUTE_UNSIGNABLE, lambda ct: put(without(ct, 0x00100020), 0x00100020,
                                                         long(0x00100020, b"UN", SECRET + b" "))),
    (Code.UN_ELEMENT, lambda ct: put(ct, 0x00104000, long(0x00104000, b"UN", SECRET + b" "))),
    (Code.UN_UNDEFINED_LENGTH, lambda ct: put(ct, SEQUENCE, long(
        SEQUENCE, b"UN", item(b"") + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0), 0xFFFFFFFF))),
    (Code.UNSIGNABLE_SEQUENCE, lambda ct: put(ct, SEQUENCE, long(
        SEQUENCE, b"SQ", item(long(0x00081199, b"UN", SECRET + b" "))))),
    (Code.NESTED_SIGNATURE, lambda ct: put(ct, SEQUENCE, long(SEQUENCE, b"SQ", item(long(0xFFFAFFFA, b"SQ", b""))))),
    (Code.REDUNDANT_PADDING, lambda ct: put(ct, 0x00104000, short(0x00104000, b"LT", SECRET + b"   "))),
    (Code.LARGE_NESTED_CONTENT, lambda ct: put(ct, SEQUENCE, NESTED_BIG)),
]  # fmt: skip


@pytest.mark.parametrize(("code", "change"), CASES, ids=[str(code) for code, _ in CASES])
def test_each_defect_is_found_by_name(code: Code, change: Callable[[bytes], bytes], ct: bytes) -> None:
    found = lint(change(ct))
    assert code in codes(found)
    (first, *_) = [finding for finding in found if finding.code is code]
    assert all((first.rule, first.advice, first.detail))
    assert SECRET.decode() not in json.dumps([finding.as_json() for finding in found])


def test_a_clean_object_has_no_finding_and_can_be_signed(
    ct: bytes, mr: bytes, hospital: Hospital, now: datetime
) -> None:
    for data in (ct, mr):
        assert lint(data) == ()
        assert lint(signing.sign(data, signer=hospital.signer("ct"), at=now)) == ()


@pytest.mark.parametrize(("code", "change"), CASES, ids=[str(code) for code, _ in CASES])
def test_what_is_called_refused_is_refused(
    code: Code, change: Callable[[bytes], bytes], ct: bytes, hospital: Hospital, now: datetime
) -> None:
    """By the signer, or by whoever verifies; and what is only fragile is not."""
    changed = change(ct)
    refused = Severity.REFUSED in {finding.severity for finding in lint(changed)}
    try:
        signing.verify(read(signing.sign(changed, signer=hospital.signer("ct"), at=now)), hospital.trust(), at=now)
    except (SignError, signing.DicomError, signing.SignatureError):
        assert refused
    else:
        assert not refused


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("MR_small_implicit.dcm", Code.IMPLICIT_VR),
        ("MR_small_bigendian.dcm", Code.BIG_ENDIAN),
        ("JPEG2000.dcm", Code.NO_EXTENDED_OFFSET_TABLE),
        ("MR_small_RLE.dcm", Code.NO_EXTENDED_OFFSET_TABLE),
    ],
)
def test_transfer_syntaxes_that_do_not_keep_a_signature_are_named(
    name: str, code: Code, bundled: Callable[[str], bytes]
) -> None:
    assert codes(lint(bundled(name))) == {code}


def test_private_elements_of_an_implicit_file_are_named(bundled: Callable[[str], bytes]) -> None:
    private = struct.pack("<HHI", 0x0011, 0x0010, 6) + b"VENDOR" + struct.pack("<HHI", 0x0011, 0x1001, 2) + b"ab"
    data = bundled("MR_small_implicit.dcm")
    at = next(each.start for each in read(data) if each.tag > 0x00111001)
    assert Code.PRIVATE_IMPLICIT in codes(lint(data[:at] + private + data[at:]))


def test_fragments_that_could_be_split_are_named(bundled: Callable[[str], bytes]) -> None:
    data = bundled("MR_small_RLE.dcm")
    element = read(data).get(0x7FE00010)
    assert element is not None
    assert element.fragments is not None
    middle = element.fragments[1].offset + 1000
    data = data[:middle] + b"\xfe\xff\x00\xe0" + data[middle + 4 :]
    assert Code.ITEM_LIKE_FRAGMENT in codes(lint(data))
    begin = element.fragments[1].offset
    headless = bundled("MR_small_RLE.dcm")
    headless = headless[:begin] + b"\xff" * 4 + headless[begin + 4 :]
    assert Code.FRAGMENT_STRUCTURE in codes(lint(headless))


@pytest.mark.parametrize("profile", ["inference", "base"])
def test_it_foresees_what_becomes_of_every_real_object(
    profile: str, shared: Path, hospital: Hospital, now: datetime
) -> None:
    trust, signer = hospital.trust(TrustPolicy.from_mapping({"required_profile": profile})), hospital.signer("mr")
    wrong = []
    for path in sorted((shared / "dicom").glob("*.dcm")):
        data = path.read_bytes()
        refused = Severity.REFUSED in {finding.severity for finding in lint(data, profile)}
        try:
            signing.verify(read(signing.sign(data, signer=signer, profile=profile, at=now)), trust, at=now)
        except (SignError, signing.DicomError, signing.SignatureError):
            wrong += [] if refused else [path.name]
        else:
            wrong += [path.name] if refused else []
    assert wrong == []


def test_a_hostile_object_is_linted_like_any_other(shared: Path) -> None:
    for path in (shared / "malformed").rglob("*"):
        if path.is_file():
            lint(path.read_bytes())


def test_findings_are_bounded(ct: bytes) -> None:
    many = b"".join(item(short(0x00081150, b"UI", b"1.2\0\0\0")) for _ in range(2 * FINDINGS_MAX))
    assert len(lint(put(ct, SEQUENCE, long(SEQUENCE, b"SQ", many)))) == FINDINGS_MAX


def test_only_what_is_no_dicom_is_unreadable(ct: bytes) -> None:
    assert not is_readable(lint(b"no scan"))
    assert is_readable(lint(put(ct, 0x00104000, short(0x00104000, b"LT", b"odd"))))
