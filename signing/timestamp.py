"""RFC 3161 time-stamp tokens over a Signature value (PS3.15 C, Certified Timestamp CMS_TSP)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from signing import der
from signing.certificates import fingerprint, parse_certificate, signature_value, verify_digest

TOKEN_BYTES_MAX = 65536
CLOCK_SKEW = timedelta(minutes=5)
_CERTIFICATES_MAX = 16
_SIGNED_DATA = "1.2.840.113549.1.7.2"
_TST_INFO = "1.2.840.113549.1.9.16.1.4"
_CONTENT_TYPE = "1.2.840.113549.1.9.3"
_MESSAGE_DIGEST = "1.2.840.113549.1.9.4"
_SIGNING_CERTIFICATE = "1.2.840.113549.1.9.16.2.12"
_SIGNING_CERTIFICATE_V2 = "1.2.840.113549.1.9.16.2.47"
_DIGESTS = {
    der.encode_oid("2.16.840.1.101.3.4.2.1"): "SHA256",
    der.encode_oid("2.16.840.1.101.3.4.2.2"): "SHA384",
    der.encode_oid("2.16.840.1.101.3.4.2.3"): "SHA512",
}
_PSS = der.encode_oid("1.2.840.113549.1.1.10")
_TIME = re.compile(rb"([0-9]{14})(?:\.([0-9]+))?Z")  # RFC 3161 2.4.2


class TokenError(ValueError):
    """The token is not what it must be; says why."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token whose signature holds over the bytes in question; its authority is not judged here."""

    time: datetime
    authority: x509.Certificate
    certificates: tuple[x509.Certificate, ...]
    """All that the token brought along; where to look for the authority's issuers."""


def read_token(stored: bytes | memoryview, stamped: bytes, intermediates: Sequence[x509.Certificate]) -> Token:
    """Check a stored token against the bytes that it must have stamped.

    Args:
        stored: the value of Certified Timestamp (0400,0310).
        stamped: the Signature value, without the padding byte of ECDSA.
        intermediates: where to look for the authority's certificate if the token does not hold it.

    Raises:
        TokenError: unreadable, over other bytes, or not signed by the certificate that it names.
    """
    if len(stored) > TOKEN_BYTES_MAX:
        raise TokenError(f"a token of {len(stored)} bytes")
    try:
        return _read(der.unpadded(bytes(stored)), stamped, intermediates)
    except InvalidSignature as error:
        raise TokenError("the token's signature is wrong") from error
    except (ValueError, IndexError, UnsupportedAlgorithm, KeyError) as error:
        raise TokenError(str(error) or "the token cannot be read") from error


def _read(token: bytes, stamped: bytes, intermediates: Sequence[x509.Certificate]) -> Token:
    """RFC 5652 5.1, RFC 3161 2.4.2, in the order (1) content (2) signer (3) attributes (4) signature."""
    content_type, wrapped = der.parse(token).expect(der.SEQUENCE).children()
    _require(content_type.whole == der.encode_oid(_SIGNED_DATA), "not CMS SignedData")
    signed_data = wrapped.expect(0xA0).children()[0].expect(der.SEQUENCE).children()

    encapsulated = signed_data[2].expect(der.SEQUENCE).children()  # (1)
    _require(encapsulated[0].whole == der.encode_oid(_TST_INFO), "not a time-stamp token")
    info = encapsulated[1].expect(0xA0).children()[0].expect(der.OCTET_STRING).content
    time = _info_time(info, stamped)

    certificates = _certificates(signed_data)  # (2)
    signers = signed_data[-1].expect(der.SET).children()
    _require(len(signers) == 1, f"{len(signers)} signers")
    signer = signers[0].expect(der.SEQUENCE).children()
    authority = _authority(signer[1], (*certificates, *intermediates))

    mac = _DIGESTS[signer[2].children()[0].whole]  # (3)
    attributes = signer[3].expect(0xA0)
    values = {item.children()[0].whole: item.children()[1].expect(der.SET).children() for item in attributes.children()}
    _check_attributes(values, hashlib.new(mac.lower(), info).digest(), authority)

    _require(signer[4].children()[0].whole != _PSS, "an RSASSA-PSS signature")  # (4)
    digest = hashlib.new(mac.lower(), der.encode(der.SET, attributes.content)).digest()
    verify_digest(authority, signature_value(authority, signer[5].expect(der.OCTET_STRING).content), digest, mac)
    return Token(time, authority, tuple(certificates))


def _info_time(info: bytes, stamped: bytes) -> datetime:
    version, _, imprint, _, time = der.parse(info).expect(der.SEQUENCE).children()[:5]
    _require(version.content == b"\x01", "a token of an unknown version")
    algorithm, hashed = imprint.children()
    mac = _DIGESTS.get(algorithm.children()[0].whole)
    _require(mac is not None, "the imprint's hash is weak or unknown")
    expected = hashlib.new(str(mac).lower(), stamped).digest()
    _require(hashed.expect(der.OCTET_STRING).content == expected, "the token stamps another signature")
    matched = _TIME.fullmatch(time.expect(der.GENERALIZED_TIME).content)
    if matched is None:
        raise TokenError("the token's time is not one in UTC")
    moment = datetime.strptime(matched[1].decode(), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    return moment + timedelta(microseconds=int((matched[2] or b"0")[:6].ljust(6, b"0")))


def _certificates(signed_data: Sequence[der.Tlv]) -> list[x509.Certificate]:
    found: list[x509.Certificate] = []
    for part in signed_data[3:-1]:
        if part.tag == 0xA0:
            stored = part.children()
            _require(len(stored) <= _CERTIFICATES_MAX, "too many certificates")
            found.extend(parse_certificate(item.whole) for item in stored if item.tag == der.SEQUENCE)
    return found


def _authority(identifier: der.Tlv, certificates: Sequence[x509.Certificate]) -> x509.Certificate:
    """The certificate that the signer identifier names (RFC 5652 5.3)."""
    for certificate in certificates:
        if identifier.tag == der.SEQUENCE:
            issuer, serial = identifier.children()
            named = issuer.whole == certificate.issuer.public_bytes()
            if named and int.from_bytes(serial.content, "big") == certificate.serial_number:
                return certificate
        elif identifier.tag == 0x80:
            digest = x509.SubjectKeyIdentifier.from_public_key(certificate.public_key()).digest
            if digest == identifier.content:
                return certificate
    raise TokenError("the authority's certificate is not at hand")


def _check_attributes(values: dict[bytes, list[der.Tlv]], digest: bytes, authority: x509.Certificate) -> None:
    """RFC 5652 11.1, 11.2; RFC 3161 2.4.2 with RFC 5816: the token names its certificate by hash."""
    _require(values[der.encode_oid(_CONTENT_TYPE)][0].whole == der.encode_oid(_TST_INFO), "a wrong content type")
    _require(values[der.encode_oid(_MESSAGE_DIGEST)][0].content == digest, "the token's content was altered")
    encoded = authority.public_bytes(Encoding.DER)
    if (second := values.get(der.encode_oid(_SIGNING_CERTIFICATE_V2))) is not None:
        identifier = second[0].children()[0].children()[0].children()
        algorithm = "SHA256"
        if identifier[0].tag == der.SEQUENCE:
            algorithm = _DIGESTS[identifier.pop(0).children()[0].whole]
        hashed = hashlib.new(algorithm.lower(), encoded).digest()
    else:
        identifier = values[der.encode_oid(_SIGNING_CERTIFICATE)][0].children()[0].children()[0].children()
        hashed = hashlib.sha1(encoded, usedforsecurity=False).digest()
    matches = identifier[0].expect(der.OCTET_STRING).content == hashed
    _require(matches, f"the token names another certificate than {fingerprint(authority)}")


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise TokenError(otherwise)
