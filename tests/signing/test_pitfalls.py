"""What other verifiers let pass, and what an attacker would try: each is refused under its own name."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable
from datetime import datetime, timedelta

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items

import signing
from signing import AllowedSigner, DicomError, Reason, SignatureError, Source, TrustPolicy, read
from signing.testing import Hospital, flip_pixel_bit, replace_value, strip_signatures, truncated

DEFLATED, IMPLICIT, BIG, JPEG = (
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.4.50",
)
Edit = Callable[[Dataset], None]


def edited(data: bytes, edit: Edit) -> bytes:
    """A re-encoding by pydicom, which leaves the canonical stream of what was not edited as it was."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    edit(dataset)
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def reason_of(
    data: bytes, hospital: Hospital, at: datetime, policy: TrustPolicy | None = None, source: Source | None = None
) -> tuple[Reason, str]:
    """The reason, and the outcome of the cryptographic check."""
    try:
        found = signing.verify(read(data), hospital.trust(policy), at=at, source=source)
    except SignatureError as error:
        return error.reason, error.checks["crypto"]
    except DicomError as error:
        return error.reason, "not_run"
    return Reason.OK, found.checks["crypto"]


@pytest.fixture(scope="session")
def signed(ct: bytes, hospital: Hospital, now: datetime) -> bytes:
    return signing.sign(ct, signer=hospital.signer("ct"), at=now)


def mac(dataset: Dataset) -> Dataset:
    return dataset.MACParametersSequence[0]


def signature(dataset: Dataset) -> Dataset:
    return dataset.DigitalSignaturesSequence[0]


def shuffle(dataset: Dataset) -> None:
    mac(dataset).DataElementsSigned = list(reversed(mac(dataset).DataElementsSigned))


def add_voi(dataset: Dataset) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [2, 0, 16], struct.pack("<2H", 0, 0)
    table["LUTDescriptor"].VR, table["LUTData"].VR = "US", "OW"
    dataset.VOILUTSequence = Items([table])


EDITS: dict[str, tuple[Edit, Reason, str]] = {
    "untouched": (lambda d: None, Reason.OK, "passed"),
    "no MAC parameters": (lambda d: delattr(d, "MACParametersSequence"), Reason.MAC_PARAMETERS_MISSING, "failed"),
    "another MAC ID": (lambda d: setattr(mac(d), "MACIDNumber", 7), Reason.MAC_PARAMETERS_MISSING, "failed"),
    "two items of one ID": (
        lambda d: d.MACParametersSequence.append(mac(d)),
        Reason.MAC_PARAMETERS_AMBIGUOUS,
        "failed",
    ),
    "unknown MAC": (lambda d: setattr(mac(d), "MACAlgorithm", "CRC32"), Reason.UNSUPPORTED_MAC, "failed"),
    "another MAC": (lambda d: setattr(mac(d), "MACAlgorithm", "SHA512"), Reason.MAC_MISMATCH, "failed"),
    "MAC syntax implicit": (
        lambda d: setattr(mac(d), "MACCalculationTransferSyntaxUID", IMPLICIT),
        Reason.MAC_TRANSFER_SYNTAX,
        "failed",
    ),
    "MAC syntax big endian": (
        lambda d: setattr(mac(d), "MACCalculationTransferSyntaxUID", BIG),
        Reason.MAC_TRANSFER_SYNTAX,
        "failed",
    ),
    "MAC syntax encapsulated": (
        lambda d: setattr(mac(d), "MACCalculationTransferSyntaxUID", JPEG),
        Reason.MAC_TRANSFER_SYNTAX,
        "failed",
    ),
    "MAC syntax deflated": (
        lambda d: setattr(mac(d), "MACCalculationTransferSyntaxUID", DEFLATED),
        Reason.MAC_PARAMETERS_UNSIGNED,
        "passed",
    ),
    "list empty": (lambda d: setattr(mac(d), "DataElementsSigned", None), Reason.DATA_ELEMENTS_SIGNED, "failed"),
    "list out of order": (shuffle, Reason.DATA_ELEMENTS_SIGNED, "failed"),
    "list names one twice": (
        lambda d: mac(d).DataElementsSigned.append(mac(d).DataElementsSigned[-1]),
        Reason.DATA_ELEMENTS_SIGNED,
        "failed",
    ),
    "list names a forbidden one": (
        lambda d: mac(d).DataElementsSigned.append(0xFFFCFFFC),
        Reason.UNSIGNABLE_ELEMENT,
        "failed",
    ),
    "list names an absent one": (
        lambda d: mac(d).DataElementsSigned.append(0x7FE10010),
        Reason.DATA_ELEMENTS_SIGNED_MISMATCH,
        "passed",
    ),
    "list names one less": (lambda d: mac(d).DataElementsSigned.pop(), Reason.MAC_MISMATCH, "failed"),
    "signed attribute removed": (lambda d: delattr(d, "PatientName"), Reason.MAC_MISMATCH, "failed"),
    "patient changed": (lambda d: setattr(d, "PatientID", "another"), Reason.MAC_MISMATCH, "failed"),
    "signing time changed": (
        lambda d: setattr(signature(d), "DigitalSignatureDateTime", "20200101000000.000000+0000"),
        Reason.MAC_MISMATCH,
        "failed",
    ),
    "signature UID changed": (
        lambda d: setattr(signature(d), "DigitalSignatureUID", "1.2.3"),
        Reason.MAC_MISMATCH,
        "failed",
    ),
    "purpose added": (
        lambda d: setattr(signature(d), "DigitalSignaturePurposeCodeSequence", Items([])),
        Reason.MAC_MISMATCH,
        "failed",
    ),
    "signature empty": (lambda d: setattr(signature(d), "Signature", b""), Reason.MAC_MISMATCH, "failed"),
    "signature 70 kB": (lambda d: setattr(signature(d), "Signature", b"\1" * 70000), Reason.MALFORMED, "failed"),
    "certificate empty": (lambda d: setattr(signature(d), "CertificateOfSigner", b""), Reason.MALFORMED, "failed"),
    "bytes after the certificate": (
        lambda d: setattr(signature(d), "CertificateOfSigner", signature(d).CertificateOfSigner + b"\0\0"),
        Reason.MALFORMED,
        "failed",
    ),
    "certificate of another type": (
        lambda d: setattr(signature(d), "CertificateType", "PGP"),
        Reason.MALFORMED,
        "failed",
    ),
    "overlay added": (lambda d: d.add_new(0x60003000, "OW", b"\0\0"), Reason.UNSIGNED_ATTRIBUTE_PRESENT, "passed"),
    "VOI LUT added": (add_voi, Reason.UNSIGNED_ATTRIBUTE_PRESENT, "passed"),
    "patient's issuer added": (
        lambda d: setattr(d, "IssuerOfPatientID", "elsewhere"),
        Reason.REQUIRED_ATTRIBUTE_UNSIGNED,
        "passed",
    ),
    "administrative attribute added": (lambda d: setattr(d, "RetrieveAETitle", "PACS"), Reason.OK, "passed"),
    "17 signatures": (lambda d: d.DigitalSignaturesSequence.extend([signature(d)] * 16), Reason.MALFORMED, "failed"),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_is_refused_by_name(name: str, signed: bytes, hospital: Hospital, now: datetime) -> None:
    edit, reason, crypto = EDITS[name]
    assert reason_of(edited(signed, edit), hospital, now) == (reason, crypto)


def test_an_added_attribute_can_be_dropped_and_then_does_not_exist(
    signed: bytes, hospital: Hospital, now: datetime
) -> None:
    trust = hospital.trust(TrustPolicy(unsigned_attributes="drop"))
    found = signing.verify(read(edited(signed, add_voi)), trust, at=now)
    assert "VOILUTSequence" in found.unsigned
    assert found.view.items(0x00283010) == ()
    assert 0x00283010 not in found.view


def test_one_pixel_bit_is_enough(signed: bytes, hospital: Hospital, now: datetime) -> None:
    for place in (0, 17_000, 32_767):
        assert reason_of(flip_pixel_bit(signed, place), hospital, now)[0] is Reason.MAC_MISMATCH


def test_an_unsigned_object_is_unsigned_and_from_an_enrolled_source_stripped(
    ct: bytes, signed: bytes, hospital: Hospital, now: datetime
) -> None:
    assert reason_of(ct, hospital, now) == (Reason.UNSIGNED, "not_run")
    assert reason_of(strip_signatures(signed), hospital, now)[0] is Reason.UNSIGNED
    assert reason_of(strip_signatures(signed), hospital, now, source=Source(enrolled=True))[0] is Reason.STRIPPED
    assert reason_of(strip_signatures(signed), hospital, now, source=Source("CT1"))[0] is Reason.UNSIGNED


def test_a_signature_on_an_item_is_none_of_the_object(
    signed: bytes, ct: bytes, hospital: Hospital, now: datetime
) -> None:
    """The macro of a whole data set is moved into an item; what it signed there stays signed, there."""

    def bury(dataset: Dataset) -> None:
        inner = pydicom.dcmread(io.BytesIO(signed))
        del inner.DataSetTrailingPadding
        dataset.SourceImageSequence = Items([inner])

    buried = edited(ct, bury)
    with pytest.raises(SignatureError) as caught:
        signing.verify(read(buried), hospital.trust(), at=now)
    assert caught.value.reason is Reason.MAIN_DATASET_UNSIGNED
    (report,) = caught.value.signatures
    assert (report.path, report.checks["crypto"]) == ("SourceImageSequence[0]", "passed")
    assert reason_of(buried, hospital, now, source=Source(enrolled=True))[0] is Reason.STRIPPED


def test_signatures_kept_of_an_earlier_state_are_ignored(signed: bytes, hospital: Hospital, now: datetime) -> None:
    def keep(dataset: Dataset) -> None:
        earlier, modified = pydicom.dcmread(io.BytesIO(signed)), Dataset()
        modified.ModifiedAttributesSequence = Items([earlier])
        dataset.OriginalAttributesSequence = Items([modified])

    with pytest.raises(SignatureError) as caught:
        signing.verify(read(edited(strip_signatures(signed), keep)), hospital.trust(), at=now)
    assert caught.value.reason is Reason.UNSIGNED


def test_a_signature_of_another_object_does_not_travel(
    signed: bytes, mr: bytes, hospital: Hospital, now: datetime
) -> None:
    donor = pydicom.dcmread(io.BytesIO(signed))

    def transplant(dataset: Dataset) -> None:
        dataset.MACParametersSequence = donor.MACParametersSequence
        dataset.DigitalSignaturesSequence = donor.DigitalSignaturesSequence

    assert reason_of(edited(mr, transplant), hospital, now) == (Reason.MAC_MISMATCH, "failed")


def test_a_file_meta_that_names_another_object_is_refused(signed: bytes, hospital: Hospital, now: datetime) -> None:
    uid = read(signed).meta[0x00020003]
    other = signed.replace(uid, uid[:-1] + b"9", 1)
    assert reason_of(other, hospital, now) == (Reason.FILE_META_MISMATCH, "passed")
    with pytest.raises(DicomError):
        signing.VerifiedView.of_unsigned(read(other))


def test_a_second_patient_is_refused(signed: bytes, hospital: Hospital, now: datetime) -> None:
    element = read(signed).get(0x00100020)
    assert element is not None
    twice = signed[: element.end] + signed[element.start : element.end] + signed[element.end :]
    assert reason_of(twice, hospital, now)[0] is Reason.DUPLICATE_ELEMENT


def test_a_listed_element_made_un_is_refused(signed: bytes, hospital: Hospital, now: datetime) -> None:
    element = read(signed).get(0x00100020)
    assert element is not None
    value = signed[element.offset : element.end]
    unknown = signed[element.start : element.start + 4] + b"UN\0\0" + struct.pack("<I", len(value)) + value
    changed = signed[: element.start] + unknown + signed[element.end :]
    assert reason_of(changed, hospital, now)[0] is Reason.UNSIGNABLE_ELEMENT


def test_weak_algorithms_are_read_and_refused_by_name(
    ct: bytes, hospital: Hospital, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["signing.sign"], "SIGNING_MACS", ("SHA1", "MD5"))
    for weak in ("SHA1", "MD5"):
        signed = signing.sign(ct, signer=hospital.signer("ct"), mac=weak, at=now)
        assert reason_of(signed, hospital, now) == (Reason.WEAK_MAC, "passed")
        assert reason_of(signed, hospital, now, TrustPolicy(mac=(weak,)))[0] is Reason.OK


def test_a_broken_signature_of_an_enrolled_signer_fails_the_object(
    ct: bytes, hospital: Hospital, now: datetime
) -> None:
    twice = signing.sign(ct, signer=hospital.signer("mr"), at=now)
    twice = signing.sign(twice, signer=hospital.signer("ct"), at=now)

    def spoil(dataset: Dataset) -> None:
        value = bytearray(dataset.DigitalSignaturesSequence[1].Signature)
        value[100] ^= 1
        dataset.DigitalSignaturesSequence[1].Signature = bytes(value)

    spoilt = edited(twice, spoil)
    assert reason_of(spoilt, hospital, now)[0] is Reason.MAC_MISMATCH
    only_mr = TrustPolicy(allowed_signers=(AllowedSigner(common_name="MR Scanner 0001"),))
    assert reason_of(spoilt, hospital, now, only_mr)[0] is Reason.OK  # a broken one of nobody we know is recorded


def test_an_additional_signer_is_heard_beside_a_main_one_only(ct: bytes, hospital: Hospital, now: datetime) -> None:
    entries = (
        AllowedSigner(common_name="CT Scanner 0001"),
        AllowedSigner(common_name="MR Scanner 0001", only_additional=True),
    )
    policy = TrustPolicy(allowed_signers=entries)
    alone = signing.sign(ct, signer=hospital.signer("mr"), at=now)
    assert reason_of(alone, hospital, now, policy)[0] is Reason.SIGNER_NOT_ALLOWED
    assert reason_of(signing.sign(alone, signer=hospital.signer("ct"), at=now), hospital, now, policy)[0] is Reason.OK


FRAMES = [b"\xff\xd8frame one!\xff\xd9", b"\xff\xd8frame two\xff\xd9\0"]


@pytest.fixture(scope="session")
def two_frames(ct: bytes, hospital: Hospital, now: datetime) -> bytes:
    def encapsulated(dataset: Dataset) -> None:
        dataset.file_meta.TransferSyntaxUID = JPEG
        dataset.NumberOfFrames = 2
        dataset.PixelData = encapsulate(FRAMES, has_bot=False)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True

    return signing.sign(edited(ct, encapsulated), signer=hospital.signer("ct"), at=now)


def refragmented(data: bytes, *parts: bytes) -> bytes:
    """With Pixel Data of other items over the same bytes."""
    element = read(data).get(0x7FE00010)
    assert element is not None
    items = b"".join(b"\xfe\xff\x00\xe0" + struct.pack("<I", len(part)) + part for part in parts)
    return data[: element.offset] + items + data[element.offset + element.length :]


def test_fragments_cannot_be_rearranged(two_frames: bytes, hospital: Hospital, now: datetime) -> None:
    table, first, second = (bytes(part) for part in read(two_frames).fragments())
    border = b"\xfe\xff\x00\xe0"
    assert reason_of(two_frames, hospital, now) == (Reason.OK, "passed")
    assert reason_of(refragmented(two_frames, table, first, second), hospital, now)[0] is Reason.OK
    for parts in ((table, first + border + second), (table + border + first, second)):
        verdict = reason_of(refragmented(two_frames, *parts), hospital, now)
        assert verdict == (Reason.FRAGMENT_STRUCTURE, "passed")
    for parts in ((b"\0" * 8, first, second), (table, second, first), (table, first, second, b"")):
        assert reason_of(refragmented(two_frames, *parts), hospital, now)[0] is Reason.MAC_MISMATCH


@pytest.mark.parametrize(
    ("count", "parts", "holds"),
    [
        (2, (struct.pack("<2I", 0, 22), FRAMES[0], FRAMES[1]), True),
        (2, (struct.pack("<2I", 0, 24), FRAMES[0], FRAMES[1]), False),
        (2, (struct.pack("<2I", 22, 0), FRAMES[0], FRAMES[1]), False),
        (2, (struct.pack("<I", 0), FRAMES[0], FRAMES[1]), False),
        (1, (b"", FRAMES[0][:4] + bytes(996), FRAMES[0][4:]), True),
        (1, (b"", FRAMES[0][:4], FRAMES[0][4:]), False),
        (2, (struct.pack("<2I", 0, 30), FRAMES[0][:4], FRAMES[0][4:], FRAMES[1]), True),
        (2, (b"", FRAMES[0][:4], FRAMES[0][4:]), False),
        (3, (b"", FRAMES[0], FRAMES[1]), False),
        (0, (b"", FRAMES[0]), False),
        (1, (b"", b"not JPEG"), False),
        (1, (b"",), False),
    ],
)
def test_fragments_give_exactly_the_frames_that_were_signed(
    count: int, parts: tuple[bytes, ...], holds: bool, two_frames: bytes, hospital: Hospital, now: datetime
) -> None:
    stripped = strip_signatures(refragmented(two_frames, *parts))
    counted = edited(stripped, lambda d: setattr(d, "NumberOfFrames", count))
    signed = signing.sign(counted, signer=hospital.signer("ct"), at=now)
    assert reason_of(signed, hospital, now)[0] is (Reason.OK if holds else Reason.FRAGMENT_STRUCTURE)


def test_a_signed_extended_offset_table_fixes_fragments_that_look_like_borders(
    two_frames: bytes, hospital: Hospital, now: datetime
) -> None:
    first = b"\xff\xd8--\xfe\xff\x00\xe0--\xff\xd9"
    plain = strip_signatures(refragmented(two_frames, b"", first, FRAMES[1]))
    signed = signing.sign(plain, signer=hospital.signer("ct"), at=now)
    assert reason_of(signed, hospital, now)[0] is Reason.FRAGMENT_STRUCTURE

    one = edited(strip_signatures(refragmented(plain, b"", first)), lambda d: setattr(d, "NumberOfFrames", 1))
    one = signing.sign(one, signer=hospital.signer("ct"), at=now)
    without_four_bytes = refragmented(one, b"", *first.split(b"\xfe\xff\x00\xe0"))
    assert reason_of(without_four_bytes, hospital, now) == (Reason.FRAGMENT_STRUCTURE, "passed")

    def fix(dataset: Dataset) -> None:
        dataset.ExtendedOffsetTable = struct.pack("<2Q", 0, 8 + len(first))
        dataset.ExtendedOffsetTableLengths = struct.pack("<2Q", len(first), len(FRAMES[1]))

    signed = signing.sign(edited(plain, fix), signer=hospital.signer("ct"), at=now)
    assert reason_of(signed, hospital, now)[0] is Reason.OK
    merged = refragmented(signed, b"", first + b"\xfe\xff\x00\xe0" + FRAMES[1])
    assert reason_of(merged, hospital, now)[0] is Reason.FRAGMENT_STRUCTURE


def test_nothing_said_of_a_refusal_holds_a_patient_s_data(signed: bytes, hospital: Hospital, now: datetime) -> None:
    name = bytes(read(signed).value(0x00100010))
    changed = replace_value(signed, 0x00100010, b"X" * len(name))
    for data in (changed, truncated(changed, 3000), edited(signed, add_voi)):
        try:
            signing.verify(read(data), hospital.trust(), at=now)
        except signing.SigningError as error:
            said = f"{error} {error.__cause__} {error.__context__}"
    assert "XXX" not in said
    assert name.decode() not in said


def test_replaying_an_old_object_is_seen_by_its_age(signed: bytes, hospital: Hospital, now: datetime) -> None:
    policy = TrustPolicy(age_s_max=3600)
    assert reason_of(signed, hospital, now + timedelta(minutes=30), policy)[0] is Reason.OK
    assert reason_of(signed, hospital, now + timedelta(hours=2), policy)[0] is Reason.TOO_OLD
