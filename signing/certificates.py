"""X.509 certificates: signature checks, and certification paths (RFC 5280 6.1) apart from dates and revocation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TypeAlias, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from signing import der, names

Path: TypeAlias = tuple[x509.Certificate, ...]
"""From the signer's certificate to a trust anchor."""

_Extension = TypeVar("_Extension", bound=x509.ExtensionType)

PATH_LENGTH_MAX = 8
PATHS_MAX = 4
SIGNATURES_MAX = 64  # signature checks for one search, whatever certificates are lying about

CACHED_MAX = 1024  # certificates: more than a hospital has; strangers' must not grow any cache

_RSASSA_PSS = "1.2.840.113549.1.1.10"
_CHAIN_HASHES = (hashes.SHA256, hashes.SHA384, hashes.SHA512, hashes.SHA3_256, hashes.SHA3_384, hashes.SHA3_512)
_HASHES: dict[str, hashes.HashAlgorithm] = {
    "SHA256": hashes.SHA256(),
    "SHA384": hashes.SHA384(),
    "SHA512": hashes.SHA512(),
    "SHA1": hashes.SHA1(),  # noqa: S303  read so that it can be refused by name
    "MD5": hashes.MD5(),  # noqa: S303
}
_RIPEMD160_DIGEST_INFO = bytes.fromhex("3021300906052b2403020105000414")
# RFC 5280 4.2: a critical extension that is not understood refuses the certificate.
_UNDERSTOOD = frozenset(
    (
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    )
)


def find_paths(
    leaf: x509.Certificate, anchors: Sequence[x509.Certificate], intermediates: Sequence[x509.Certificate]
) -> tuple[Path, ...]:
    """Paths from `leaf` to an anchor whose signatures, names, constraints and key usages hold; the shortest first.

    Dates, revocation and what the leaf may be used for are judged elsewhere: they change, these do not.
    """
    found: list[Path] = []
    budget = SIGNATURES_MAX
    pending: list[Path] = [(leaf,)]
    while pending and len(found) < PATHS_MAX and budget > 0:
        path = pending.pop(0)
        last = path[-1]
        if last in anchors:
            if _holds(path):
                found.append(path)
            continue
        if len(path) >= PATH_LENGTH_MAX:
            continue
        for issuer in (*anchors, *intermediates):
            if issuer.subject == last.issuer and issuer not in path and budget > 0:
                budget -= 1
                if is_issued_by(last, issuer):
                    pending.append((*path, issuer))
    return tuple(found)


def is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """The issuer's name and key made this certificate's signature, with a hash that still holds."""
    try:
        if not isinstance(certificate.signature_hash_algorithm, _CHAIN_HASHES):
            return certificate.signature_hash_algorithm is None and _verified(certificate, issuer)  # EdDSA
        return _verified(certificate, issuer)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


def _verified(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        return False
    return True


def _holds(path: Path) -> bool:
    """RFC 5280 6.1.4 for each issuer in the path, 6.1.5 for the leaf."""
    try:
        if any(extension.critical and extension.oid not in _UNDERSTOOD for c in path for extension in c.extensions):
            return False
        issuers_may_issue = all(_may_issue(issuer, below) for below, issuer in enumerate(path[1:]))
        return issuers_may_issue and names.allowed(path)
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return False


def _may_issue(issuer: x509.Certificate, issuers_below: int) -> bool:
    constraints = extension(issuer, x509.BasicConstraints)
    if constraints is None or not constraints.ca:
        return False
    if constraints.path_length is not None and issuers_below > constraints.path_length:
        return False
    usage = extension(issuer, x509.KeyUsage)
    return usage is None or usage.key_cert_sign


def extension(certificate: x509.Certificate, kind: type[_Extension]) -> _Extension | None:
    """The value of an extension, or None where absent."""
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


@lru_cache(maxsize=CACHED_MAX)
def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER, in hexadecimal digits."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def common_name(certificate: x509.Certificate) -> str:
    """The last Common Name of the subject; empty where there is none."""
    values = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[-1].value) if values else ""


def algorithm(certificate: x509.Certificate) -> str:
    """The key's algorithm and size, such as `RSA-3072`, `RSASSA-PSS-2048`, `P-256`."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return "unknown"
    if isinstance(key, rsa.RSAPublicKey):
        return f"{'RSASSA-PSS' if is_pss(certificate) else 'RSA'}-{key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}.get(key.curve.name, key.curve.name)
    return type(key).__name__.removesuffix("PublicKey").lstrip("_")


def key_weakness(certificate: x509.Certificate, min_rsa_bits: int, min_ec_bits: int) -> str | None:
    """Why the key is too weak, or None."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return "a key of an unknown kind"
    if isinstance(key, rsa.RSAPublicKey):
        small, exponent = key.key_size < min_rsa_bits, key.public_numbers().e
        return f"an {algorithm(certificate)} key" if small or exponent < 3 or exponent % 2 == 0 else None
    if isinstance(key, ec.EllipticCurvePublicKey):
        known = isinstance(key.curve, (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1))
        return None if known and key.key_size >= min_ec_bits else f"a key on {algorithm(certificate)}"
    return f"an {algorithm(certificate)} key"


def verify_digest(certificate: x509.Certificate, signature: bytes, digest: bytes, mac: str) -> None:
    """Check a signature value over a digest; the certificate alone says which algorithm, nothing is tried.

    Raises:
        InvalidSignature: it is not this key's signature of this digest.
        ValueError, UnsupportedAlgorithm: the key or the value has a form that cannot be checked.
    """
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        if len(signature) != (key.key_size + 7) // 8:
            raise InvalidSignature
        if mac == "RIPEMD160":
            if key.recover_data_from_signature(signature, padding.PKCS1v15(), None) != _RIPEMD160_DIGEST_INFO + digest:
                raise InvalidSignature
            return
        algorithm_of_hash = _HASHES[mac]
        scheme: padding.AsymmetricPadding = padding.PKCS1v15()
        if is_pss(certificate):
            scheme = padding.PSS(padding.MGF1(algorithm_of_hash), padding.PSS.AUTO)
        key.verify(signature, digest, scheme, utils.Prehashed(algorithm_of_hash))
    elif isinstance(key, ec.EllipticCurvePublicKey):
        same_size = _HASHES.get(mac, hashes.SHA1())  # noqa: S303  ECDSA uses nothing of it but the size
        key.verify(signature, digest, ec.ECDSA(utils.Prehashed(same_size)))
    else:
        raise UnsupportedAlgorithm("neither RSA nor ECDSA")


def hash_of(mac: str) -> hashes.HashAlgorithm:
    """The hash of a MAC Algorithm; KeyError for one that is not among those that new signatures may use."""
    return _HASHES[mac]


def signature_value(certificate: x509.Certificate, stored: bytes) -> bytes:
    """The signature without the padding byte that an ECDSA value of odd length carries."""
    return der.unpadded(stored) if isinstance(certificate.public_key(), ec.EllipticCurvePublicKey) else stored


@lru_cache(maxsize=CACHED_MAX)
def parse_certificate(encoded: bytes) -> x509.Certificate:
    """A stranger's certificate, with what everybody looks at decoded; extensions are left to the path search.

    Raises:
        ValueError: it is not well-formed.
    """
    try:
        certificate = x509.load_der_x509_certificate(encoded)
        looked_at = certificate.subject, certificate.issuer, certificate.not_valid_after_utc, certificate.public_key()
    except (TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ValueError(str(error)) from error
    assert looked_at
    return certificate


def load_certificates(pem_or_der: bytes) -> Iterator[x509.Certificate]:
    """Every certificate of a PEM bundle, or the one of a DER file."""
    if b"-----BEGIN" in pem_or_der:
        for certificate in x509.load_pem_x509_certificates(pem_or_der):
            yield parse_certificate(certificate.public_bytes(Encoding.DER))
    else:
        yield parse_certificate(pem_or_der)


def is_pss(certificate: x509.Certificate) -> bool:
    """The key is for RSASSA-PSS alone."""
    return certificate.public_key_algorithm_oid.dotted_string == _RSASSA_PSS


NOT_FOR_SIGNING = frozenset(
    (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.OCSP_SIGNING,
        ExtendedKeyUsageOID.TIME_STAMPING,
    )
)
"""Extended key usages that say nothing about signing objects."""
