"""Keys that make signatures; `sign` only ever hands them a digest, so a key may stay inside its hardware."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from signing.certificates import hash_of, is_pss, load_certificates, verify_digest
from signing.errors import SignError
from signing.pkcs11_uri import Pkcs11Uri

if TYPE_CHECKING:
    import pkcs11

_PUBLIC_KEYS = (rsa.RSAPublicKey, ec.EllipticCurvePublicKey)
_CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
_DIGEST_INFO = {  # RFC 8017 9.2, note 1
    "SHA256": bytes.fromhex("3031300d060960864801650304020105000420"),
    "SHA384": bytes.fromhex("3041300d060960864801650304020205000430"),
    "SHA512": bytes.fromhex("3051300d060960864801650304020305000440"),
}


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
            SignError: unreadable, of another kind, or key, certificate and issuers do not belong together.
        """
        try:
            key = load_pem_private_key(Path(key_pem_path).read_bytes(), password)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise SignError(f"private key {key_pem_path}: {error}") from error
        certificates = _read(cert_pem_path)
        issuers = _issuers(certificates, chain)
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


@dataclass(frozen=True, slots=True)
class Pkcs11Signer:
    """A private key inside a PKCS #11 token: only digests go in, only signatures come out."""

    certificate: x509.Certificate
    chain: tuple[x509.Certificate, ...]
    """Issuers up to, but not including, the root."""
    _session: pkcs11.Session
    _key: pkcs11.SignMixin

    @classmethod
    def open(cls, uri: str, cert_pem_path: str | Path, chain: str | Path | None = None) -> Pkcs11Signer:
        """Open a session with the token that an RFC 7512 URI names, and find the key in it.

        Raises:
            SignError: python-pkcs11 is not installed, or module, token, PIN or key are not as said.
        """
        named = Pkcs11Uri.parse(uri)
        certificates = _read(cert_pem_path)
        issuers = _issuers(certificates, chain)
        try:
            import pkcs11  # noqa: PLC0415  an extra: most sign with files, or not at all
        except ImportError as error:
            raise SignError("keys in hardware need python-pkcs11 (pip install 'scanward[pkcs11]')") from error
        try:
            token = pkcs11.lib(named.module).get_token(token_label=named.token, token_serial=named.serial)
            session = token.open(user_pin=named.pin)
        except (pkcs11.exceptions.PKCS11Error, RuntimeError) as error:
            raise SignError(f"PKCS #11 token: {type(error).__name__} {error}".rstrip()) from error
        try:
            key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label=named.label, id=named.id)
        except pkcs11.exceptions.PKCS11Error as error:
            session.close()
            raise SignError(f"PKCS #11 key: {type(error).__name__} {error}".rstrip()) from error
        assert isinstance(key, pkcs11.SignMixin)
        return cls(certificates[0], issuers, session, key)

    def close(self) -> None:
        """End the session."""
        self._session.close()

    def sign_digest(self, digest: bytes, mac: str) -> bytes:
        """Have the token sign, and check that what it made is the certificate's.

        Raises:
            SignError: the token refuses, or its key is not the certificate's.
        """
        import pkcs11  # noqa: PLC0415  as above

        public, mechanisms = self.certificate.public_key(), pkcs11.Mechanism
        try:
            if isinstance(public, ec.EllipticCurvePublicKey):
                halves = self._key.sign(digest, mechanism=mechanisms.ECDSA)
                half = len(halves) // 2
                numbers = int.from_bytes(halves[:half], "big"), int.from_bytes(halves[half:], "big")
                value = utils.encode_dss_signature(*numbers)
            elif is_pss(self.certificate):
                parameters = (mechanisms[mac], pkcs11.MGF[mac], len(digest))
                value = self._key.sign(digest, mechanism=mechanisms.RSA_PKCS_PSS, mechanism_param=parameters)
            else:
                value = self._key.sign(_DIGEST_INFO[mac] + digest, mechanism=mechanisms.RSA_PKCS)
        except pkcs11.exceptions.PKCS11Error as error:
            raise SignError(f"PKCS #11 token: {type(error).__name__} {error}".rstrip()) from error
        try:
            verify_digest(self.certificate, value, digest, mac)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
            raise SignError("the certificate is not for the key in the token") from error
        return value


def _read(path: str | Path) -> tuple[x509.Certificate, ...]:
    try:
        certificates = tuple(load_certificates(Path(path).read_bytes()))
    except (OSError, ValueError) as error:
        raise SignError(f"certificate {path}: {error}") from error
    if not certificates:
        raise SignError(f"certificate {path}: the file holds none")
    return certificates


def _issuers(certificates: tuple[x509.Certificate, ...], chain: str | Path | None) -> tuple[x509.Certificate, ...]:
    """What comes after the signer's own certificate, in its file or in that of the chain, in order of issue.

    Raises:
        SignError: one of them issued none of those before it: a wrong chain is found now, not by who verifies.
    """
    left = [*certificates[1:], *(_read(chain) if chain is not None else ())]
    ordered: list[x509.Certificate] = []
    subject = certificates[0]
    while left:
        issuer = next((candidate for candidate in left if _issued(candidate, subject)), None)
        if issuer is None:
            raise SignError(f"the chain does not lead on from {subject.subject.rfc4514_string()}")
        left.remove(issuer)
        ordered.append(issuer)
        subject = issuer
    return tuple(ordered)


def _issued(issuer: x509.Certificate, subject: x509.Certificate) -> bool:
    """Whether names and signature fit (RFC 5280 6.1.3 a)."""
    try:
        subject.verify_directly_issued_by(issuer)
    except (InvalidSignature, UnsupportedAlgorithm, TypeError, ValueError):
        return False
    return True
