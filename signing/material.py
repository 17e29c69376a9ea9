"""Judges revocation material that was fetched, before it may replace what is there; fetches nothing itself."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from cryptography.x509.oid import AuthorityInformationAccessOID

from signing.certificates import extension, is_issued_by
from signing.errors import TrustError
from signing.revocation import CLOCK_SKEW, Revocation, is_crl_of


@dataclass(frozen=True, slots=True)
class Material:
    """Revocation material that may be used."""

    encoded: bytes
    """DER."""
    subject: str
    """Digest of what it speaks about: two of the same subject replace one another."""
    this_update: datetime
    next_update: datetime | None
    new: bool
    """Not among what is there already."""

    def is_current(self, at: datetime, age_s_max: int) -> bool:
        """Whether a certificate may be taken as unrevoked on its word."""
        in_time = self.next_update is None or at <= self.next_update
        return in_time and at - timedelta(seconds=age_s_max) <= self.this_update


def admit_crl(
    data: bytes,
    issuers: Iterable[x509.Certificate],
    present: Iterable[x509.CertificateRevocationList],
    at: datetime,
) -> Material:
    """A certificate revocation list by one of `issuers`, not older than those of its kind in `present`.

    Raises:
        TrustError: it is none, of no use, somebody else's, from the future, or older: whoever can choose what we
            fetch must not be able to take a revocation back.
    """
    crl = parse_crl(data)
    issuers = tuple(issuers)
    if any(isinstance(each.value, x509.DeltaCRLIndicator) or _is_indirect(each.value) for each in crl.extensions):
        raise TrustError("a delta or an indirect list, which is not used")
    if not any(is_crl_of(crl, issuer) for issuer in issuers):
        raise TrustError("not signed by the authority whose list it should be")
    if crl.last_update_utc > at + CLOCK_SKEW:
        raise TrustError("issued in the future")
    encoded, scope = crl.public_bytes(Encoding.DER), _scope(crl)
    rivals = [each for each in present if _scope(each) == scope and any(is_crl_of(each, issuer) for issuer in issuers)]
    known = any(each.public_bytes(Encoding.DER) == encoded for each in rivals)
    newest = max(rivals, key=_order, default=None)
    if newest is not None and _order(crl) <= _order(newest) and newest.public_bytes(Encoding.DER) != encoded:
        raise TrustError(f"not newer than the list of {newest.last_update_utc:%Y-%m-%d %H:%M} that is there")
    return Material(encoded, _digest(scope), crl.last_update_utc, crl.next_update_utc, not known)


def ocsp_request(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    """The question after one certificate (RFC 6960 4.1), in the form that every responder answers (RFC 5019 2.1.1)."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA1())  # noqa: S303  an identifier
    return builder.build().public_bytes(Encoding.DER)


def admit_ocsp(
    data: bytes,
    certificate: x509.Certificate,
    issuer: x509.Certificate,
    responders: Sequence[x509.Certificate],
    present: Iterable[ocsp.OCSPResponse],
    at: datetime,
) -> Material:
    """An OCSP response about one certificate, not older than those about it in `present`.

    Raises:
        TrustError: it is none, not about this certificate, not signed for its issuer, from the future, or older.
    """
    response = parse_ocsp(data)
    if response.response_status != ocsp.OCSPResponseStatus.SUCCESSFUL:
        raise TrustError(f"the responder answered {response.response_status.name.lower()}")
    answer = Revocation((), (response,), responders).newest(certificate, issuer)
    if answer is None:
        raise TrustError("no word on this certificate that was signed for its issuer")
    if answer.this_update > at + CLOCK_SKEW:
        raise TrustError("issued in the future")
    present = tuple(present)
    before = Revocation((), present, responders).newest(certificate, issuer)
    known = any(each.public_bytes(Encoding.DER) == data for each in present)
    if before is not None and (answer.this_update, known) <= (before.this_update, False):
        raise TrustError(f"not newer than the answer of {before.this_update:%Y-%m-%d %H:%M} that is there")
    subject = _digest((issuer.public_bytes(Encoding.DER), certificate.serial_number.to_bytes(32, "big")))
    return Material(data, subject, answer.this_update, answer.next_update, not known)


def crl_addresses(certificate: x509.Certificate) -> Iterator[tuple[str, ...]]:
    """Where the lists that speak of a certificate are: for each, its addresses of any scheme (RFC 5280 4.2.1.13)."""
    points = extension(certificate, x509.CRLDistributionPoints)
    for point in points or ():
        if point.crl_issuer is None and point.reasons is None:
            names = point.full_name or ()
            if urls := tuple(each.value for each in names if isinstance(each, x509.UniformResourceIdentifier)):
                yield urls


def ocsp_addresses(certificate: x509.Certificate) -> tuple[str, ...]:
    """Who can be asked after a certificate (RFC 5280 4.2.2.1)."""
    return tuple(
        each.access_location.value
        for each in extension(certificate, x509.AuthorityInformationAccess) or ()
        if each.access_method == AuthorityInformationAccessOID.OCSP
        and isinstance(each.access_location, x509.UniformResourceIdentifier)
    )


def issuer_of(certificate: x509.Certificate, candidates: Iterable[x509.Certificate]) -> x509.Certificate | None:
    """Who of the candidates issued a certificate; None for one that issued itself."""
    if certificate.subject == certificate.issuer:
        return None
    return next((each for each in candidates if is_issued_by(certificate, each)), None)


def oldest_in_use(revocation: Revocation) -> datetime | None:
    """When the oldest material was issued, of each kind the newest; None where there is none."""
    newest: dict[tuple[bytes, ...], datetime] = {}
    for crl in revocation.crls:
        scope = _scope(crl)
        newest[scope] = max(crl.last_update_utc, newest.get(scope, crl.last_update_utc))
    for response in revocation.ocsp_responses:
        if response.response_status != ocsp.OCSPResponseStatus.SUCCESSFUL:
            continue
        for single in response.responses:
            about = single.issuer_name_hash, single.issuer_key_hash, single.serial_number.to_bytes(32, "big")
            newest[about] = max(single.this_update_utc, newest.get(about, single.this_update_utc))
    return min(newest.values(), default=None)


def parse_crl(data: bytes) -> x509.CertificateRevocationList:
    """A certificate revocation list in PEM or DER; raises `TrustError`."""
    try:
        crl = x509.load_der_x509_crl(data) if data[:1] == b"\x30" else x509.load_pem_x509_crl(data)
        assert crl.last_update_utc
        assert crl.extensions is not None  # decoded when they are first looked at, and so here
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise TrustError("not a certificate revocation list") from error
    return crl


def parse_ocsp(data: bytes) -> ocsp.OCSPResponse:
    """An OCSP response in DER; raises `TrustError`."""
    try:
        response = ocsp.load_der_ocsp_response(data)
        assert response.response_status
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise TrustError("not an OCSP response") from error
    return response


def _order(crl: x509.CertificateRevocationList) -> tuple[datetime, int]:
    numbers = [each.value.crl_number for each in crl.extensions if isinstance(each.value, x509.CRLNumber)]
    return crl.last_update_utc, numbers[0] if numbers else -1


def _scope(crl: x509.CertificateRevocationList) -> tuple[bytes, ...]:
    """What a list speaks about: its issuer's certificates, or some of them (RFC 5280 5.2.5)."""
    points = [each.value.public_bytes() for each in crl.extensions if each.oid == _ISSUING_POINT]
    return (crl.issuer.public_bytes(), *points)


_ISSUING_POINT = x509.IssuingDistributionPoint.oid


def _is_indirect(value: x509.ExtensionType) -> bool:
    return isinstance(value, x509.IssuingDistributionPoint) and value.indirect_crl


def _digest(parts: tuple[bytes, ...]) -> str:
    return hashlib.sha256(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).hexdigest()
