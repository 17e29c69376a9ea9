"""Chains, certificates and revocation: each judged at the right time, each with its own reason."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import signing
from signing import (
    AllowedSigner,
    FileSigner,
    Reason,
    SignatureError,
    Trust,
    TrustError,
    TrustPolicy,
    read,
)
from signing.certificates import find_paths
from signing.testing import Hospital, Key

Verdict = tuple[Reason, dict[str, str], bool]


DAY = timedelta(days=1)


def test_a_good_signature_passes_every_check_that_was_asked_for(
    outcome: Callable[..., Verdict], signed: bytes, hospital: Hospital, now: datetime
) -> None:
    reason, checks, _ = outcome(signed, hospital.trust(), now)
    assert reason is Reason.OK
    assert list(checks) == ["crypto", "coverage", "signer", "chain", "revocation", "timestamp", "binding", "freshness"]
    assert [checks[name] for name in ("timestamp", "binding", "freshness")] == ["not_run"] * 3
    assert all(checks[name] == "passed" for name in ("crypto", "coverage", "signer", "chain", "revocation"))


def test_a_stranger_with_the_same_names_is_untrusted(
    outcome: Callable[..., Verdict], ct: bytes, hospital: Hospital, now: datetime
) -> None:
    foreign = signing.sign(ct, signer=hospital.signer("stranger"), at=now)
    reason, checks, _ = outcome(foreign, hospital.trust(), now)
    assert (reason, checks["crypto"], checks["chain"], checks["signer"]) == (
        Reason.UNTRUSTED,
        "passed",
        "failed",
        "not_run",
    )


def test_without_the_intermediate_nothing_chains(
    outcome: Callable[..., Verdict], signed: bytes, hospital: Hospital, now: datetime
) -> None:
    trust = Trust.load(None, [hospital.path("root.pem")])
    assert outcome(signed, trust, now)[0] is Reason.UNTRUSTED


@pytest.mark.parametrize(("when", "reason"), [(-400, Reason.NOT_YET_VALID), (5000, Reason.EXPIRED)])
def test_certificates_are_judged_at_the_time_of_receipt(
    outcome: Callable[..., Verdict], when: int, reason: Reason, signed: bytes, hospital: Hospital, now: datetime
) -> None:
    trust = hospital.trust(TrustPolicy(revocation="unsafe_off"))
    found, checks, _ = outcome(signed, trust, now + when * DAY)
    assert (found, checks["chain"], checks["revocation"]) == (reason, "failed", "not_run")


@pytest.mark.parametrize("who", ["ct", "intermediate"])
def test_the_whole_chain_is_checked_for_revocation(
    outcome: Callable[..., Verdict], who: str, ct: bytes, ward: Hospital, now: datetime
) -> None:
    signed = signing.sign(ct, signer=ward.signer("ct"), at=now)
    ward.issue_crls(now=now, revoked={who: now - timedelta(hours=2)})
    reason, checks, _ = outcome(signed, ward.trust(), now)
    assert (reason, checks["revocation"]) == (Reason.REVOKED, "failed")


@pytest.mark.parametrize(
    ("policy", "days", "expected"),
    [
        (TrustPolicy(), 30, Reason.REVOCATION_UNKNOWN),  # past its next update
        (TrustPolicy(revocation_age_s_max=60), 0, Reason.REVOCATION_UNKNOWN),  # older than the policy allows
        (TrustPolicy(revocation="unsafe_soft_fail"), 30, Reason.OK),
        (TrustPolicy(revocation="unsafe_off"), 30, Reason.OK),
    ],
)
def test_stale_revocation_material_fails_hard_unless_told_otherwise(
    outcome: Callable[..., Verdict],
    policy: TrustPolicy,
    days: int,
    expected: Reason,
    signed: bytes,
    hospital: Hospital,
    now: datetime,
) -> None:
    reason, checks, indeterminate = outcome(signed, hospital.trust(policy), now + days * DAY)
    assert reason is expected
    assert indeterminate is (expected is not Reason.OK)
    assert checks["revocation"] == ("not_run" if policy.revocation == "unsafe_off" else "indeterminate")


def test_a_revocation_holds_however_stale_the_list_is(
    outcome: Callable[..., Verdict], ct: bytes, ward: Hospital, now: datetime
) -> None:
    signed = signing.sign(ct, signer=ward.signer("ct"), at=now)
    ward.issue_crls(now=now, days=1, revoked={"ct": now - timedelta(hours=2)})
    assert outcome(signed, ward.trust(TrustPolicy(revocation="unsafe_soft_fail")), now + 90 * DAY)[0] is Reason.REVOKED


def test_a_list_signed_by_another_key_says_nothing(
    outcome: Callable[..., Verdict], signed: bytes, hospital: Hospital, tmp_path: Path, now: datetime
) -> None:
    other = Hospital.make(tmp_path, now=now)
    trust = Trust.load(
        None,
        [hospital.path("root.pem")],
        [hospital.path("intermediate.pem")],
        [other.path("root.crl"), other.path("intermediate.crl")],
    )
    assert outcome(signed, trust, now)[0] is Reason.REVOCATION_UNKNOWN


def respond(
    hospital: Hospital,
    now: datetime,
    path: Path,
    status: ocsp.OCSPCertStatus,
    who: str = "ct",
    by: tuple[x509.Certificate, Key] | None = None,
) -> Path:
    issuer = hospital.certificate("intermediate")
    issuer_key = hospital.key("intermediate")
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    responder, key = by or (issuer, issuer_key)
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    builder = ocsp.OCSPResponseBuilder().add_response(
        hospital.certificate(who),
        issuer,
        hashes.SHA256(),
        status,
        now,
        now + DAY,
        now - DAY if revoked else None,
        None,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, responder).certificates([responder])
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER))
    return path


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (ocsp.OCSPCertStatus.GOOD, Reason.OK),
        (ocsp.OCSPCertStatus.REVOKED, Reason.REVOKED),
        (ocsp.OCSPCertStatus.UNKNOWN, Reason.REVOCATION_UNKNOWN),
    ],
)
def test_an_ocsp_response_stands_in_for_a_list(
    outcome: Callable[..., Verdict],
    status: ocsp.OCSPCertStatus,
    expected: Reason,
    signed: bytes,
    hospital: Hospital,
    tmp_path: Path,
    now: datetime,
) -> None:
    response = respond(hospital, now, tmp_path / "r.der", status)
    crls = [hospital.path("root.crl")]
    trust = Trust.load(None, [hospital.path("root.pem")], [hospital.path("intermediate.pem")], crls, [response])
    assert outcome(signed, trust, now)[0] is expected


def certify(
    hospital: Hospital,
    now: datetime,
    *extensions: tuple[x509.ExtensionType, bool],
    by: str = "intermediate",
    cn: str = "x",
    key: Key | None = None,
) -> tuple[x509.Certificate, Key]:
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder().subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, cn)]))
    builder = builder.issuer_name(hospital.certificate(by).subject).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - DAY).not_valid_after(now + 4000 * DAY)
    for value, critical in extensions:
        builder = builder.add_extension(value, critical)
    return builder.sign(hospital.key(by), hashes.SHA256()), key


@pytest.mark.parametrize("certified", [True, False])
def test_only_a_responder_certified_for_it_speaks_for_the_issuer(
    outcome: Callable[..., Verdict], certified: bool, signed: bytes, hospital: Hospital, tmp_path: Path, now: datetime
) -> None:
    usage = ExtendedKeyUsageOID.OCSP_SIGNING if certified else ExtendedKeyUsageOID.CLIENT_AUTH
    responder = certify(hospital, now, (x509.ExtendedKeyUsage([usage]), False))
    response = respond(hospital, now, tmp_path / "r.der", ocsp.OCSPCertStatus.GOOD, by=responder)
    crls = [hospital.path("root.crl")]
    trust = Trust.load(None, [hospital.path("root.pem")], [hospital.path("intermediate.pem")], crls, [response])
    assert outcome(signed, trust, now)[0] is (Reason.OK if certified else Reason.REVOCATION_UNKNOWN)


def directory(name: str) -> x509.DirectoryName:
    return x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))


CA = (x509.BasicConstraints(True, None), True)


@pytest.mark.parametrize(
    ("issuer_extensions", "leaf_name", "chains"),
    [
        ([CA], "x", True),
        ([], "x", False),
        ([(x509.BasicConstraints(False, None), True)], "x", False),
        ([CA, (x509.NameConstraints([directory("good")], None), True)], "good", True),
        ([CA, (x509.NameConstraints([directory("good")], None), True)], "bad", False),
        ([CA, (x509.NameConstraints(None, [directory("bad")]), True)], "bad", False),
        ([CA, (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), True)], "x", False),
        ([CA, (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0"), False)], "x", True),
    ],
)
def test_a_path_keeps_the_rules_of_rfc_5280(
    issuer_extensions: list[tuple[x509.ExtensionType, bool]],
    leaf_name: str,
    chains: bool,
    hospital: Hospital,
    now: datetime,
) -> None:
    issuer, issuer_key = certify(hospital, now, *issuer_extensions, by="root", cn="another issuer")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, leaf_name)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer.subject).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - DAY).not_valid_after(now + DAY)
    leaf = builder.sign(issuer_key, hashes.SHA256())
    assert bool(find_paths(leaf, [hospital.certificate("root")], [issuer])) is chains


def test_a_path_is_no_longer_than_its_issuers_allow(hospital: Hospital, now: datetime) -> None:
    inner = hospital.certificate("intermediate")  # path length 0
    issuer, issuer_key = certify(hospital, now, CA, cn="below an issuer that allows none")
    builder = x509.CertificateBuilder().subject_name(inner.subject).issuer_name(issuer.subject)
    builder = builder.public_key(issuer_key.public_key()).serial_number(1)
    leaf = builder.not_valid_before(now - DAY).not_valid_after(now + DAY).sign(issuer_key, hashes.SHA256())
    assert not find_paths(leaf, [hospital.certificate("root")], [inner, issuer])


def test_many_certificates_of_one_name_do_not_make_the_search_long(hospital: Hospital, now: datetime) -> None:
    crowd = [certify(hospital, now, CA, by="root", cn="Scanward Demo Device CA")[0] for _ in range(80)]
    assert not find_paths(hospital.certificate("stranger"), [hospital.certificate("root")], crowd)


def test_an_authority_may_bring_its_issuer_along(
    outcome: Callable[..., Verdict], ct: bytes, hospital: Hospital, now: datetime
) -> None:
    """The token holds the certificate between the authority's and a root."""
    issuer, issuer_key = certify(hospital, now, CA, by="root", cn="issuer of authorities")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(issuer.subject).public_key(key.public_key())
    builder = builder.serial_number(7).not_valid_before(now - DAY).not_valid_after(now + DAY)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
    certificate = builder.sign(issuer_key, hashes.SHA256())
    authority = signing.testing.LocalAuthority(certificate, key, lambda: now, issuers=(issuer,))

    stamped = signing.sign(ct, signer=hospital.signer("mr"), at=now, tsa=authority)
    lenient = TrustPolicy(revocation="unsafe_soft_fail")
    assert signing.verify(read(stamped), hospital.trust(lenient), at=now).timestamp == now
    reason, checks, indeterminate = outcome(stamped, hospital.trust(), now)
    assert (reason, checks["timestamp"], indeterminate) == (Reason.REVOCATION_UNKNOWN, "indeterminate", True)


def key_usage(**said: bool) -> x509.KeyUsage:
    names = "digital_signature content_commitment key_encipherment data_encipherment key_agreement key_cert_sign"
    every = dict.fromkeys((*names.split(), "crl_sign", "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(**{**every, **said})


SIGNS = (key_usage(digital_signature=True), True)


@pytest.mark.parametrize(
    ("extensions", "required", "expected"),
    [
        ([SIGNS], (), Reason.OK),
        ([], (), Reason.KEY_USAGE),
        ([(key_usage(key_encipherment=True), True)], (), Reason.KEY_USAGE),
        ([SIGNS, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)], (), Reason.EXTENDED_KEY_USAGE),
        ([SIGNS, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.OCSP_SIGNING]), False)], (), Reason.EXTENDED_KEY_USAGE),
        ([SIGNS, (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), True)], (), Reason.EXTENDED_KEY_USAGE),
        ([SIGNS, (x509.ExtendedKeyUsage([x509.ObjectIdentifier("1.2.3.4")]), False)], ("1.2.3.4",), Reason.OK),
        ([SIGNS], ("1.2.3.4",), Reason.EXTENDED_KEY_USAGE),
    ],
)
def test_a_certificate_must_be_one_for_signing(
    outcome: Callable[..., Verdict],
    extensions: list[tuple[x509.ExtensionType, bool]],
    required: tuple[str, ...],
    expected: Reason,
    ct: bytes,
    hospital: Hospital,
    tmp_path: Path,
    now: datetime,
) -> None:
    signer = load(tmp_path, *certify(hospital, now, *extensions))
    trust = hospital.trust(TrustPolicy(required_eku=required))
    reason, checks, _ = outcome(signing.sign(ct, signer=signer, at=now), trust, now)
    assert (reason, checks["signer"]) == (expected, "passed" if expected is Reason.OK else "failed")


def test_a_small_key_is_weak(
    outcome: Callable[..., Verdict], ct: bytes, hospital: Hospital, tmp_path: Path, now: datetime
) -> None:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505
    signer = load(tmp_path, *certify(hospital, now, SIGNS, key=key))
    assert outcome(signing.sign(ct, signer=signer, at=now), hospital.trust(), now)[0] is Reason.WEAK_KEY
    demanding = TrustPolicy(min_rsa_bits=4096)
    signed = signing.sign(ct, signer=hospital.signer("ct"), at=now)
    assert outcome(signed, hospital.trust(demanding), now)[0] is Reason.WEAK_KEY


def test_another_certificate_of_the_same_key_is_another_signer(
    outcome: Callable[..., Verdict], ct: bytes, hospital: Hospital, now: datetime
) -> None:
    """The certificate is not covered by the MAC, so it can be exchanged; the allow-list tells the two apart."""
    key = hospital.key("mr")
    alias, _ = certify(hospital, now, SIGNS, cn="alias", key=key)

    class Alias:
        """Signs as the MR scanner, under another certificate."""

        certificate = alias

        def sign_digest(self, digest: bytes, mac: str) -> bytes:
            return hospital.signer("mr").sign_digest(digest, mac)

    signed = signing.sign(ct, signer=Alias(), at=now)
    assert outcome(signed, hospital.trust(), now)[0] is Reason.OK
    policy = TrustPolicy(allowed_signers=(AllowedSigner(common_name="MR Scanner 0001"),))
    assert outcome(signed, hospital.trust(policy), now)[0] is Reason.SIGNER_NOT_ALLOWED


def load(folder: Path, certificate: x509.Certificate, key: Key) -> FileSigner:
    (folder / "signer.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "signer.key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return FileSigner.load(folder / "signer.key", folder / "signer.pem")


def test_a_chain_is_searched_once_for_a_whole_series(
    outcome: Callable[..., Verdict], signed: bytes, hospital: Hospital, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust = hospital.trust()
    outcome(signed, trust, now)
    monkeypatch.setattr("signing.trust.find_paths", None)
    monkeypatch.setattr("signing.revocation.is_issued_by", None)
    assert outcome(signed, trust, now + timedelta(hours=1))[0] is Reason.OK
    assert outcome(signed, trust, now + 30 * DAY)[0] is Reason.REVOCATION_UNKNOWN  # dates are never cached


def test_verification_needs_a_time_zone(signed: bytes, hospital: Hospital) -> None:
    with pytest.raises(ValueError, match="time zone"):
        signing.verify(read(signed), hospital.trust(), at=datetime(2026, 3, 1))


@pytest.mark.parametrize("broken", ["roots", "intermediates", "crls", "ocsp"])
def test_broken_trust_material_is_named(broken: str, hospital: Hospital, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_bytes(b"-----BEGIN JUNK-----")
    given = {"roots": [hospital.path("root.pem")], broken: [junk]}
    with pytest.raises(TrustError, match="junk"):
        Trust.load(None, **given)
    with pytest.raises(TrustError, match="missing"):
        Trust.load(None, **{**given, broken: [tmp_path / "missing.pem"]})


def test_no_root_no_trust(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="no trusted root"):
        Trust.load(None, [tmp_path])


def test_times_are_compared_as_utc(ct: bytes, hospital: Hospital, now: datetime) -> None:
    from signing.mac import parse_datetime

    assert parse_datetime("20260301130000.5+0100") == datetime(2026, 3, 1, 12, 0, 0, 500000, tzinfo=UTC)
    assert parse_datetime("20260301120000") == datetime(2026, 3, 1, 12, tzinfo=UTC)
    for text in ("", "2026", "20261301120000", "20260301120000+9900", "2026030112000x"):
        with pytest.raises(SignatureError):
            parse_datetime(text)
