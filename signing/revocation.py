"""Revocation from material at hand: CRLs (RFC 5280 5) and OCSP responses (RFC 6960); nothing is fetched."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from signing.certificates import CACHED_MAX, extension, fingerprint, is_issued_by

CLOCK_SKEW = timedelta(minutes=5)
_OCSP_HASHES = frozenset(("sha1", "sha256", "sha384", "sha512"))


@dataclass(frozen=True, slots=True)
class Status:
    """What the material says about one certificate at one time."""

    known: bool
    """There is a current answer."""
    revoked_at: datetime | None
    """Since when its signatures are worthless; None where it is not revoked."""
    detail: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One CRL's or OCSP response's word on one certificate, its signature checked."""

    source: str
    this_update: datetime
    next_update: datetime | None
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Revocation:
    """All revocation material, with the answers already found in it."""

    crls: Sequence[x509.CertificateRevocationList] = ()
    ocsp_responses: Sequence[ocsp.OCSPResponse] = ()
    responders: Sequence[x509.Certificate] = ()
    """Certificates of delegated OCSP responders, beside those inside the responses."""
    _answers: dict[tuple[str, str], tuple[Answer, ...]] = field(default_factory=dict, repr=False, compare=False)

    def status(self, certificate: x509.Certificate, issuer: x509.Certificate, at: datetime, age_s_max: int) -> Status:
        """Judge one certificate of a path.

        A revocation holds however old the material is; being unrevoked must be said by material that is
        current at `at`: issued, not past its next update, and no older than `age_s_max` seconds.
        """
        answers = self._found(certificate, issuer)
        revoked = [answer.revoked_at for answer in answers if answer.revoked_at is not None]
        if revoked:
            return Status(True, min(revoked), "revoked")
        for answer in answers:
            current = answer.next_update is None or at <= answer.next_update
            if current and at - timedelta(seconds=age_s_max) <= answer.this_update <= at + CLOCK_SKEW:
                return Status(True, None, answer.source)
        return Status(False, None, "its revocation material is out of date" if answers else "no revocation material")

    def newest(self, certificate: x509.Certificate, issuer: x509.Certificate) -> Answer | None:
        """The latest word on one certificate, current or not; None where there is no word."""
        return max(self._found(certificate, issuer), key=lambda answer: answer.this_update, default=None)

    def _found(self, certificate: x509.Certificate, issuer: x509.Certificate) -> tuple[Answer, ...]:
        """Dates apart, an answer never changes, so each certificate's is looked up once."""
        key = fingerprint(certificate), fingerprint(issuer)
        known = self._answers.get(key)
        if known is None:
            if len(self._answers) >= CACHED_MAX:
                self._answers.clear()
            known = self._answers[key] = (*self._from_crls(certificate, issuer), *self._from_ocsp(certificate, issuer))
        return known

    def _from_crls(self, certificate: x509.Certificate, issuer: x509.Certificate) -> Iterator[Answer]:
        for crl in self.crls:
            if crl.issuer != certificate.issuer or not _speaks_for(crl, certificate):
                continue
            if not is_crl_of(crl, issuer):
                continue
            entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
            yield Answer("CRL", crl.last_update_utc, crl.next_update_utc, _revoked_at(entry))

    def _from_ocsp(self, certificate: x509.Certificate, issuer: x509.Certificate) -> Iterator[Answer]:
        for response in self.ocsp_responses:
            if response.response_status != ocsp.OCSPResponseStatus.SUCCESSFUL:
                continue
            singles = [single for single in response.responses if _is_about(single, certificate, issuer)]
            if not singles or not self._ocsp_signed_for(response, issuer):
                continue
            for single in singles:
                if single.certificate_status == ocsp.OCSPCertStatus.UNKNOWN:
                    continue
                yield Answer("OCSP", single.this_update_utc, single.next_update_utc, single.revocation_time_utc)

    def _ocsp_signed_for(self, response: ocsp.OCSPResponse, issuer: x509.Certificate) -> bool:
        """RFC 6960 4.2.2.2: by the issuer itself, or by a responder that it certified for this."""
        if _ocsp_signed_by(response, issuer):
            return True
        for responder in (*response.certificates, *self.responders):
            usages = extension(responder, x509.ExtendedKeyUsage)
            if usages is None or ExtendedKeyUsageOID.OCSP_SIGNING not in usages or not is_issued_by(responder, issuer):
                continue
            produced = response.produced_at_utc
            valid = responder.not_valid_before_utc <= produced <= responder.not_valid_after_utc
            withdrawn = any(answer.revoked_at is not None for answer in self._from_crls(responder, issuer))
            if valid and not withdrawn and _ocsp_signed_by(response, responder):
                return True
        return False


def is_crl_of(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """The list is named after this authority, and signed by it, which may do so (RFC 5280 6.3.3 f)."""
    usage = extension(issuer, x509.KeyUsage)
    if crl.issuer != issuer.subject or (usage is not None and not usage.crl_sign):
        return False
    try:
        return crl.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def _revoked_at(entry: x509.RevokedCertificate | None) -> datetime | None:
    """The earlier of revocation and invalidity date (RFC 5280 5.3.2); None where the entry lifts a hold."""
    if entry is None:
        return None
    dates = [entry.revocation_date_utc]
    for item in entry.extensions:
        if isinstance(item.value, x509.CRLReason) and item.value.reason == x509.ReasonFlags.remove_from_crl:
            return None
        if isinstance(item.value, x509.InvalidityDate):
            dates.append(item.value.invalidity_date_utc)
    return min(dates)


def _speaks_for(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> bool:
    """Neither a delta nor an indirect CRL, nor one for other certificates (RFC 5280 5.2.4, 5.2.5)."""
    for item in crl.extensions:
        value = item.value
        if isinstance(value, x509.IssuingDistributionPoint):
            constraints = extension(certificate, x509.BasicConstraints)
            is_ca = constraints is not None and constraints.ca
            if value.indirect_crl or value.only_some_reasons or value.only_contains_attribute_certs:
                return False
            if value.only_contains_ca_certs if not is_ca else value.only_contains_user_certs:
                return False
        elif item.critical and not isinstance(value, (x509.CRLNumber, x509.AuthorityKeyIdentifier)):
            return False
    return True


def _is_about(single: ocsp.OCSPSingleResponse, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if single.serial_number != certificate.serial_number or single.hash_algorithm.name not in _OCSP_HASHES:
        return False
    key = issuer.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        bits = key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    elif isinstance(key, ec.EllipticCurvePublicKey):
        bits = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    else:
        return False
    hashed = hashlib.new(single.hash_algorithm.name, issuer.subject.public_bytes(), usedforsecurity=False).digest()
    key_hashed = hashlib.new(single.hash_algorithm.name, bits, usedforsecurity=False).digest()
    return hashed == single.issuer_name_hash and key_hashed == single.issuer_key_hash


def _ocsp_signed_by(response: ocsp.OCSPResponse, signer: x509.Certificate) -> bool:
    key, algorithm = signer.public_key(), response.signature_hash_algorithm
    if algorithm is None or algorithm.name in {"md5", "sha1"}:
        return False
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(response.signature, response.tbs_response_bytes, padding.PKCS1v15(), algorithm)
        elif isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(algorithm))
        else:
            return False
    except InvalidSignature:
        return False
    return True
