"""A series from which something is missing, or into which something came, is told from a whole one."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import signing
import signing.certified
from signing import DicomError, EnvelopeError, Outcome, Reason, SignatureError, SignError, TrustPolicy, envelope, read
from signing.series import PAYLOAD_TYPE, SeriesReason, SeriesVerdict, instance_digest, sign_series, verify_series
from signing.testing import Hospital, flip_pixel_bit, replace_value

SOP_INSTANCE_UID, SERIES_INSTANCE_UID, RETRIEVE_AE_TITLE = 0x00080018, 0x0020000E, 0x00080054


def slice_of(ct: bytes, number: int, *, series: bool = False) -> bytes:
    """The CT as another object: of the same series, or of another."""
    elements = read(ct)
    for tag in (SOP_INSTANCE_UID, SERIES_INSTANCE_UID) if series else (SOP_INSTANCE_UID,):
        uid = bytes(elements.value(tag))
        other = (
            uid[:-4] + b"%03d" % (number + 100) + uid[-1:] if uid[-1:] == b"\0" else uid[:-3] + b"%d" % (number + 100)
        )
        ct = replace_value(ct, tag, other)
        if tag == SOP_INSTANCE_UID:
            meta = elements.meta[0x00020003]
            ct = ct.replace(meta, other.rstrip(b"\0"), 1)
    return ct


@pytest.fixture
def folder(tmp_path: Path, ct: bytes) -> Path:
    (tmp_path / "series").mkdir()
    for number in range(5):
        (tmp_path / "series" / f"{number}.dcm").write_bytes(slice_of(ct, number))
    return tmp_path / "series"


@pytest.fixture
def manifest(folder: Path, hospital: Hospital, now: datetime) -> bytes:
    return sign_series(sorted(folder.iterdir()), signer=hospital.signer("ct"), at=now)


@pytest.fixture
def check(folder: Path, hospital: Hospital, manifest: bytes, now: datetime) -> Callable[[], SeriesVerdict]:
    return lambda: verify_series(sorted(folder.iterdir()), manifest, hospital.trust(), at=now)


def test_a_whole_series_passes(check: Callable[[], SeriesVerdict], hospital: Hospital, now: datetime) -> None:
    found = check()
    assert (found.verdict, found.listed, found.found, found.findings) == (Outcome.PASSED, 5, 5, ())
    assert (found.created, found.signer.subject) == (now, hospital.certificate("ct").subject.rfc4514_string())


def test_signing_each_object_afterwards_changes_nothing(
    check: Callable[[], SeriesVerdict], folder: Path, hospital: Hospital, now: datetime
) -> None:
    for path in folder.iterdir():
        path.write_bytes(signing.sign(path.read_bytes(), signer=hospital.signer("mr"), at=now))
    assert check().verdict is Outcome.PASSED


@pytest.mark.parametrize(
    ("change", "reasons", "whole"),
    [
        (lambda folder, _: (folder / "2.dcm").unlink(), [SeriesReason.MISSING], 4),
        (lambda folder, ct: (folder / "9.dcm").write_bytes(slice_of(ct, 9)), [SeriesReason.EXTRA], 5),
        (lambda folder, ct: (folder / "9.dcm").write_bytes(slice_of(ct, 9, series=True)), [SeriesReason.MIXED], 5),
        (lambda folder, _: shutil.copy(folder / "1.dcm", folder / "9.dcm"), [SeriesReason.DUPLICATE], 5),
        (lambda folder, _: (folder / "9.dcm").write_bytes(b"no scan"), [SeriesReason.UNREADABLE], 5),
        (
            lambda folder, _: (folder / "1.dcm").write_bytes(flip_pixel_bit((folder / "1.dcm").read_bytes())),
            [SeriesReason.ALTERED],
            4,
        ),
        (
            lambda folder, ct: (folder / "1.dcm").write_bytes(slice_of(ct, 1, series=True)),
            [SeriesReason.MIXED, SeriesReason.MISSING],
            4,
        ),
        (
            lambda folder, _: (folder / "1.dcm").write_bytes((folder / "1.dcm").read_bytes()[:-9]),
            [SeriesReason.UNREADABLE, SeriesReason.MISSING],
            4,
        ),
    ],
    ids=["missing", "extra", "mixed", "duplicate", "unreadable", "altered", "exchanged", "cut short"],
)
def test_each_defect_has_its_reason(
    change: Callable[[Path, bytes], object],
    reasons: list[SeriesReason],
    whole: int,
    check: Callable[[], SeriesVerdict],
    folder: Path,
    ct: bytes,
) -> None:
    change(folder, ct)
    found = check()
    assert [finding.reason for finding in found.findings] == reasons
    assert (found.verdict, found.found) == (Outcome.FAILED, whole)


def test_an_altered_manifest_is_not_believed(folder: Path, manifest: bytes, hospital: Hospital, now: datetime) -> None:
    document = json.loads(manifest)
    payload = json.loads(base64.b64decode(document["payload"]))
    payload["instances"].pop()
    document["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    with pytest.raises(SignatureError) as caught:
        verify_series(folder.iterdir(), json.dumps(document).encode(), hospital.trust(), at=now)
    assert caught.value.reason is Reason.MAC_MISMATCH


@pytest.mark.parametrize(
    ("who", "policy", "later", "reason"),
    [
        ("stranger", {}, 0, Reason.UNTRUSTED),
        ("mr", {"allowed_signers": [{"common_name": "CT Scanner 0001"}]}, 0, Reason.SIGNER_NOT_ALLOWED),
        ("ct", {"allowed_signers": [{"common_name": "CT Scanner 0001", "sop_classes": ["1.2"]}]}, 0,
         Reason.SIGNER_NOT_ALLOWED),
        ("ct", {}, 20 * 365, Reason.EXPIRED),
        ("ct", {}, 30, Reason.REVOCATION_UNKNOWN),
        ("ct", {"min_rsa_bits": 4096}, 0, Reason.WEAK_KEY),
    ],
)  # fmt: skip
def test_its_signer_must_be_believed(
    who: str, policy: dict[str, object], later: int, reason: Reason, folder: Path, hospital: Hospital, now: datetime
) -> None:
    manifest = sign_series(folder.iterdir(), signer=hospital.signer(who), at=now)
    trust = hospital.trust(TrustPolicy.from_mapping(policy))
    with pytest.raises(SignatureError) as caught:
        verify_series(folder.iterdir(), manifest, trust, at=now + timedelta(days=later))
    assert caught.value.reason is reason


def test_the_chain_travels_with_the_manifest(folder: Path, hospital: Hospital, now: datetime) -> None:
    crls = [hospital.path("root.crl"), hospital.path("intermediate.crl")]
    trust = signing.Trust.load(None, [hospital.path("root.pem")], [], crls)
    chain = (hospital.certificate("intermediate"),)
    manifest = sign_series(folder.iterdir(), signer=hospital.signer("ct"), chain=chain, at=now)
    assert verify_series(folder.iterdir(), manifest, trust, at=now).verdict is Outcome.PASSED
    bare = sign_series(folder.iterdir(), signer=hospital.signer("ct"), at=now)
    with pytest.raises(SignatureError, match="untrusted"):
        verify_series(folder.iterdir(), bare, trust, at=now)


def test_what_is_no_manifest_is_refused(folder: Path, hospital: Hospital, now: datetime) -> None:
    ed25519 = envelope.seal(b"{}", PAYLOAD_TYPE, Ed25519PrivateKey.generate())
    other = envelope.seal(b"{}", "application/json", Ed25519PrivateKey.generate())
    empty = signing.certified.seal(b'{"instances": []}', PAYLOAD_TYPE, hospital.signer("ct"))
    for wrong in (b"", b"[]", b"{}", other, ed25519, empty):
        with pytest.raises(EnvelopeError):
            verify_series(folder.iterdir(), wrong, hospital.trust(), at=now)


def test_only_the_objects_of_one_series_can_be_listed(
    folder: Path, ct: bytes, hospital: Hospital, now: datetime
) -> None:
    def listed() -> bytes:
        return sign_series(sorted(folder.iterdir()), signer=hospital.signer("ct"), at=now)

    (folder / "9.dcm").write_bytes(slice_of(ct, 9, series=True))
    with pytest.raises(SignError, match="another series"):
        listed()
    shutil.copy(folder / "1.dcm", folder / "9.dcm")
    with pytest.raises(SignError, match="already"):
        listed()
    (folder / "9.dcm").write_bytes(b"no scan")
    with pytest.raises(DicomError):
        listed()
    with pytest.raises(SignError, match="no object"):
        sign_series([], signer=hospital.signer("ct"), at=now)


def test_the_digest_fixes_where_fragments_end(bundled: Callable[[str], bytes]) -> None:
    """The canonical stream says no lengths, so a border that moves over an item tag would not show in it."""
    data = bundled("MR_small_RLE.dcm")
    element = read(data).get(0x7FE00010)
    assert element is not None
    assert element.fragments is not None
    offset, length = element.fragments[1]
    item = b"\xfe\xff\x00\xe0"
    one = data[: offset + 100] + item + data[offset + 104 :]
    first, second = (100).to_bytes(4, "little"), (length - 104).to_bytes(4, "little")
    two = data[: offset - 4] + first + data[offset : offset + 100] + item + second + data[offset + 104 :]
    digests = {instance_digest(read(each)) for each in (one, two)}
    assert len(digests) == 2
