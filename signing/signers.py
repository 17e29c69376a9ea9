"""Keys that make signatures; `sign` only ever hands them a digest, so a key may stay inside its hardware."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from signing.certificates import hash_of, is_pss, load_certificates
from signing.errors import SignError

_PUBLIC_KEYS = (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)


class Signer(Protocol):
    """Someone who can sign a digest, and says with which certificate."""

    @property
    def certificate(self) -> x509.Certificate:
        """Goes into the object (0400,0115)."""

    def sign_digest(self, digest: bytes, mac: str) -> bytes:
        """PKCS #1 v1.5 over the DigestInfo for RSA (PSS for an id-RSASSA-PSS certificate), DER for ECDSA."""


@dataclass(frozen=True, slots=True)
class FileSigner:
    """A private key from a PEM file: RSA, P-256, P-384 or P-521."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    """Issuers up to, but not including, the root; a DICOM signature has no room for them."""
    _key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

    @classmethod
    def load(
        cls,
        key_pem_path: str | Path,
        cert_pem_path: str | Path,
        chain: str | Path | None = None,
        password: bytes | None = None,
    ) -> FileSigner:
        """Read a key, its certificate and perhaps the issuers' certificates.

        Raises:
            SignError: unreadable, of another kind, or key and certificate do not belong together.
        """
        try:
            key = load_pem_private_key(Path(key_pem_path).read_bytes(), password)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SignError(f"private key {key_pem_path}: {error}") from error
        certificates = _read(cert_pem_path)
        issuers = (*certificates[1:], *(_read(chain) if chain is not None else ()))
        if not isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey)):
            raise SignError(f"private key {key_pem_path}: neither RSA nor ECDSA")
        if isinstance(key, ec.EllipticCurvePrivateKey) and not isinstance(key.curve, _CURVES):
            raise SignError(f"private key {key_pem_path}: not on P-256, P-384 or P-521")
        stated = certificates[0].public_key()
        if not isinstance(stated, _PUBLIC_KEYS) or stated.public_numbers() != key.public_key().public_numbers():
            raise SignError(f"the certificate {cert_pem_path} is not for the key {key_pem_path}")
        return cls(certificates[0], issuers, key)

    def sign_digest(self, digest: bytes, mac: str) -> bytes:
        """Sign in this process."""
        prehashed = utils.Prehashed(hash_of(mac))
        if isinstance(self._key, ec.EllipticCurvePrivateKey):
            return self._key.sign(digest, ec.ECDSA(prehashed))
        scheme: padding.AsymmetricPadding = padding.PKCS1v15()
        if is_pss(self.certificate):
            scheme = padding.PSS(padding.MGF1(hash_of(mac)), padding.PSS.DIGEST_LENGTH)
        return self._key.sign(digest, scheme, prehashed)


def _read(path: str | Path) -> tuple[x509.Certificate, ...]:
    try:
        certificates = tuple(load_certificates(Path(path).read_bytes()))
    except (OSError, ValueError) as error:
        raise SignError(f"certificate {path}: {error}") from error
    if not certificates:
        raise SignError(f"certificate {path}: the file holds none")
    return certificates
