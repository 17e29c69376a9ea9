"""What we sign verifies, covers what its profile says, and leaves every other byte alone."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

import signing
from signing import FileSigner, SignError, Trust, TrustPolicy, read
from signing.testing import Hospital, strip_signatures, without

PIXELS = 0x7FE00010
FILES = [
    "CT_small.dcm",
    "MR_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "JPEG2000.dcm",
    "SC_rgb_rle_2frame.dcm",
    "test-SR.dcm",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("mac", ["SHA256", "SHA384", "SHA512"])
@pytest.mark.parametrize("who", ["ct", "mr"])
def test_a_signed_object_verifies(
    name: str, mac: str, who: str, hospital: Hospital, now: datetime, bundled: Callable[[str], bytes]
) -> None:
    signed = signing.sign(bundled(name), signer=hospital.signer(who), mac=mac, at=now)
    found = signing.verify(read(signed), hospital.trust(), at=now)

    assert (found.profile, found.mac) == ("inference", mac)
    assert found.algorithm == {"ct": "RSA-3072", "mr": "P-256"}[who]
    assert found.signed_at == now
    assert found.signer.fingerprint_sha256 == hospital.certificate(who).fingerprint(hashes.SHA256()).hex()
    assert found.view.signed
    assert [each.tag for each in found.view] == list(found.report.covered_tags)


@pytest.mark.parametrize("name", FILES)
def test_every_byte_that_was_there_stays(
    name: str, hospital: Hospital, now: datetime, bundled: Callable[[str], bytes]
) -> None:
    data = bundled(name)
    assert strip_signatures(signing.sign(data, signer=hospital.signer("mr"), at=now)) == data


def test_a_deflated_object_keeps_its_inflated_bytes(
    hospital: Hospital, now: datetime, bundled: Callable[[str], bytes]
) -> None:
    data = bundled("image_dfl.dcm")
    signed = signing.sign(data, signer=hospital.signer("mr"), at=now)
    before, after = read(data), read(signed)

    signing.verify(after, hospital.trust(), at=now)
    kept = [after.data[each.start : each.end] for each in after if each.tag in before]
    assert b"".join(kept) == bytes(before.data)


def test_signatures_add_up_and_each_stands_alone(ct: bytes, hospital: Hospital, now: datetime) -> None:
    twice = ct
    for who in ("ct", "mr"):
        twice = signing.sign(twice, signer=hospital.signer(who), at=now, purpose=1 if who == "ct" else 5)
    found = signing.verify(read(twice), hospital.trust(), at=now)

    assert [report.purpose for report in found.signatures] == [1, 5]
    assert [report.reason for report in found.signatures] == [signing.Reason.OK] * 2
    assert len({item.integer(0x04000005) for item in read(twice).items(0x4FFE0001)}) == 2
    assert found.signatures[0].covered_tags == found.signatures[1].covered_tags


def test_the_same_content_has_the_same_signed_digest_whoever_signs(
    ct: bytes, hospital: Hospital, now: datetime
) -> None:
    trust = hospital.trust()
    digests = {
        signing.verify(read(signing.sign(ct, signer=hospital.signer(who), at=now)), trust, at=now).signed_digest
        for who in ("ct", "mr", "mr")
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("profile", "name", "covers", "leaves"),
    [
        ("base", "CT_small.dcm", {"SOPInstanceUID"}, {"PixelData", "PatientID"}),
        (
            "creator",
            "CT_small.dcm",
            {"PixelData", "Rows", "StudyInstanceUID", "Manufacturer"},
            {"PatientID", "Modality"},
        ),
        ("authorization", "CT_small.dcm", {"PixelData", "Rows", "SeriesInstanceUID"}, {"PatientID", "InstitutionName"}),
        ("sr", "test-SR.dcm", {"ContentSequence", "SOPInstanceUID"}, {"PatientID", "VerificationFlag"}),
        ("sr-verified", "test-SR.dcm", {"ContentSequence", "VerifyingObserverSequence"}, {"PatientID"}),
        ("inference", "CT_small.dcm", {"PatientID", "PixelSpacing", "PixelData", "RescaleSlope"}, set()),
    ],
)
def test_a_profile_covers_what_it_names(
    profile: str,
    name: str,
    covers: set[str],
    leaves: set[str],
    hospital: Hospital,
    now: datetime,
    bundled: Callable[[str], bytes],
) -> None:
    signed = signing.sign(bundled(name), signer=hospital.signer("mr"), profile=profile, at=now)
    found = signing.verify(read(signed), hospital.trust(TrustPolicy(required_profile=profile)), at=now)

    assert covers <= set(found.covers)
    assert leaves <= set(found.unsigned)
    assert not leaves & {signing.dictionary.keyword(each.tag) for each in found.view}


def test_more_attributes_can_be_named(ct: bytes, hospital: Hospital, now: datetime) -> None:
    tags = ["PatientID", 0x00100010, "PixelData"]
    signed = signing.sign(ct, signer=hospital.signer("mr"), profile="base", tags=tags, at=now)
    found = signing.verify(read(signed), hospital.trust(TrustPolicy(required_profile="base")), at=now)
    assert set(found.covers) == {"SOPInstanceUID", "PatientID", "PatientName", "PixelData"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"mac": "SHA1"}, "SHA1"),
        ({"profile": "nonsense"}, "nonsense"),
        ({"tags": ["NoSuchAttribute"]}, "NoSuchAttribute"),
        ({"tags": ["PatientAddress"]}, "absent"),
        ({"purpose": 19}, "19"),
        ({"profile": "sr"}, "absent"),
        ({"profile": "none"}, "0 attributes"),
    ],
)
def test_what_cannot_be_signed_is_refused_by_name(
    change: dict[str, object], says: str, ct: bytes, hospital: Hospital, now: datetime
) -> None:
    with pytest.raises(SignError, match=says):
        signing.sign(ct, signer=hospital.signer("mr"), at=now, **change)  # type: ignore[arg-type]


def test_an_object_without_a_patient_is_not_signed_for_inference(ct: bytes, hospital: Hospital, now: datetime) -> None:
    with pytest.raises(SignError, match="0010,0020"):
        signing.sign(without(ct, 0x00100020), signer=hospital.signer("mr"), at=now)


def test_an_object_whose_file_meta_names_another_is_not_signed(ct: bytes, hospital: Hospital, now: datetime) -> None:
    uid = read(ct).meta[0x00020003]
    with pytest.raises(signing.DicomError) as caught:
        signing.sign(ct.replace(uid, uid[:-1] + b"9", 1), signer=hospital.signer("mr"), at=now)
    assert caught.value.reason is signing.Reason.FILE_META_MISMATCH


def test_the_pixels_of_the_view_are_the_bytes_of_the_file(ct: bytes, hospital: Hospital, now: datetime) -> None:
    signed = signing.sign(ct, signer=hospital.signer("mr"), at=now)
    view = signing.verify(read(signed), hospital.trust(), at=now).view
    element = read(signed).get(PIXELS)
    assert element is not None
    assert view.value(PIXELS).obj is signed
    assert view.value(PIXELS) == memoryview(signed)[element.offset : element.end]


def test_keys_may_be_encrypted_and_must_fit_their_certificate(hospital: Hospital, tmp_path: Path) -> None:
    encrypted = tmp_path / "ct.key"
    form = Encoding.PEM, PrivateFormat.PKCS8
    encrypted.write_bytes(hospital.key("ct").private_bytes(*form, BestAvailableEncryption(b"secret")))
    FileSigner.load(encrypted, hospital.path("ct.pem"), password=b"secret")
    for key, certificate, password in (
        (encrypted, "ct.pem", b"wrong"),
        (encrypted, "ct.pem", None),
        (hospital.path("mr.key"), "ct.pem", None),
        (hospital.path("none.key"), "ct.pem", None),
        (hospital.path("ct.key"), "none.pem", None),
        (hospital.path("ct.key"), "ct.key", None),
    ):
        with pytest.raises(SignError):
            FileSigner.load(key, hospital.path(certificate), password=password)


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_p384_and_p521_sign_and_verify(
    curve: ec.EllipticCurve, ct: bytes, hospital: Hospital, tmp_path: Path, now: datetime
) -> None:
    key = ec.generate_private_key(curve)
    certificate = issue(hospital, key.public_key(), now)
    (tmp_path / "k.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (tmp_path / "c.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    signer = FileSigner.load(tmp_path / "k.pem", tmp_path / "c.pem")
    found = signing.verify(read(signing.sign(ct, signer=signer, mac="SHA512", at=now)), hospital.trust(), at=now)
    assert found.algorithm == f"P-{curve.key_size}"


def test_a_certificate_for_pss_signs_and_verifies_by_pss_alone(ct: bytes, shared: Path, now: datetime) -> None:
    pki = shared / "signing-vectors/pki"
    signer = FileSigner.load(pki / "pss.key", pki / "pss.pem")
    trust = Trust.load(TrustPolicy(revocation="unsafe_off"), [pki / "root.pem"], [pki / "inter.pem"])
    signed = signing.sign(ct, signer=signer, at=now)
    assert signing.verify(read(signed), trust, at=now).algorithm == "RSASSA-PSS-2048"


def test_a_pkcs1_signature_is_not_taken_for_pss_nor_the_other_way_round(
    ct: bytes, hospital: Hospital, now: datetime
) -> None:
    class Confused:
        """Signs with PSS under a certificate that says plain RSA."""

        certificate = hospital.certificate("ct")

        def sign_digest(self, digest: bytes, mac: str) -> bytes:
            key = hospital.key("ct")
            assert isinstance(key, rsa.RSAPrivateKey)
            scheme = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)
            return key.sign(digest, scheme, signing.signers.utils.Prehashed(hashes.SHA256()))

    with pytest.raises(signing.SignatureError) as caught:
        signing.verify(read(signing.sign(ct, signer=Confused(), at=now)), hospital.trust(), at=now)
    assert caught.value.reason is signing.Reason.MAC_MISMATCH


def issue(hospital: Hospital, key: ec.EllipticCurvePublicKey, now: datetime) -> x509.Certificate:
    issuer, model = hospital.certificate("intermediate"), hospital.certificate("mr")
    builder = x509.CertificateBuilder().subject_name(model.subject).issuer_name(issuer.subject).public_key(key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(model.not_valid_before_utc).not_valid_after(model.not_valid_after_utc)
    usage = model.extensions.get_extension_for_class(x509.KeyUsage).value
    return builder.add_extension(usage, critical=True).sign(hospital.key("intermediate"), hashes.SHA256())


def test_issuers_are_put_in_the_order_of_issue(hospital: Hospital, tmp_path: Path) -> None:
    (tmp_path / "chain.pem").write_bytes(
        hospital.path("root.pem").read_bytes() + hospital.path("intermediate.pem").read_bytes()
    )
    signer = FileSigner.load(hospital.path("ct.key"), hospital.path("ct.pem"), tmp_path / "chain.pem")

    assert signer.chain == (hospital.certificate("intermediate"), hospital.certificate("root"))


def test_a_chain_of_another_house_is_refused(hospital: Hospital) -> None:
    with pytest.raises(SignError, match="does not lead on from CN=CT Scanner 0001"):
        FileSigner.load(hospital.path("ct.key"), hospital.path("ct.pem"), hospital.path("stranger-root.pem"))
