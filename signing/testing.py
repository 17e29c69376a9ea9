"""A tiny hospital for tests and the demo: its keys and certificates, and objects tampered with on purpose."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from signing import der
from signing.dictionary import DIGITAL_SIGNATURES_SEQUENCE, MAC_PARAMETERS_SEQUENCE, PIXEL_DATA
from signing.elements import read
from signing.policy import TrustPolicy
from signing.signers import FileSigner
from signing.trust import Trust

Key: TypeAlias = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

_YEARS = timedelta(days=3652)


@dataclass(frozen=True, slots=True)
class Hospital:
    """A public key infrastructure in a folder of PEM files.

    `root` certified `intermediate`, which certified the scanners `ct` and `mr` and the authority `tsa`;
    a stranger's root certified `stranger`, who says to be the CT scanner. Each has NAME.pem and NAME.key.
    """

    directory: Path

    @classmethod
    def make(cls, directory: str | Path, *, now: datetime | None = None, crl_days: int = 7) -> Hospital:
        """Write a new hospital into a folder, with CRLs that are good for `crl_days`."""
        hospital = cls(Path(directory))
        hospital.directory.mkdir(parents=True, exist_ok=True)
        began = (now or datetime.now(UTC)) - timedelta(days=1)

        root = hospital._certify("root", "Scanward Demo Root CA", _ec(), None, began, ca=1)
        inner = hospital._certify("intermediate", "Scanward Demo Device CA", _ec(), root, began, ca=0)
        hospital._certify("ct", "CT Scanner 0001", _rsa(), inner, began)
        hospital._certify("mr", "MR Scanner 0001", _ec(), inner, began)
        hospital._certify("tsa", "Scanward Demo TSA", _ec(), inner, began, timestamping=True)
        foreign = hospital._certify("stranger-root", "Scanward Demo Root CA", _ec(), None, began, ca=1)
        hospital._certify("stranger", "CT Scanner 0001", _ec(), foreign, began)
        hospital.issue_crls(now=now, days=crl_days)
        return hospital

    def issue_crls(
        self, *, now: datetime | None = None, days: int = 7, revoked: dict[str, datetime] | None = None
    ) -> None:
        """Write new revocation lists of root and intermediate; `revoked` says since when, by name."""
        moment = now or datetime.now(UTC)
        for issuer in ("root", "intermediate"):
            certificate, key = self.certificate(issuer), self.key(issuer)
            builder = (
                x509.CertificateRevocationListBuilder()
                .issuer_name(certificate.subject)
                .last_update(moment - timedelta(hours=1))
                .next_update(moment + timedelta(days=days))
            )
            for name, since in (revoked or {}).items():
                withdrawn = self.certificate(name)
                if withdrawn.issuer == certificate.subject:
                    entry = x509.RevokedCertificateBuilder().serial_number(withdrawn.serial_number)
                    builder = builder.add_revoked_certificate(entry.revocation_date(since).build())
            list_of_revoked = builder.sign(key, hashes.SHA256())
            self.path(f"{issuer}.crl").write_bytes(list_of_revoked.public_bytes(Encoding.PEM))

    def path(self, file: str) -> Path:
        """Of one of its files, such as `ct.pem`."""
        return self.directory / file

    def certificate(self, name: str) -> x509.Certificate:
        """By its file's name."""
        return x509.load_pem_x509_certificate(self.path(f"{name}.pem").read_bytes())

    def key(self, name: str) -> Key:
        """By its file's name."""
        from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

        key = load_pem_private_key(self.path(f"{name}.key").read_bytes(), None)
        assert isinstance(key, (rsa.RSAPrivateKey, ec.EllipticCurvePrivateKey))
        return key

    def signer(self, name: str) -> FileSigner:
        """Signs as one of the scanners, or as the stranger."""
        return FileSigner.load(self.path(f"{name}.key"), self.path(f"{name}.pem"))

    def authority(self, at: Callable[[], datetime] | None = None) -> LocalAuthority:
        """Its time-stamping authority, in this process."""
        return LocalAuthority(self.certificate("tsa"), self.key("tsa"), at or (lambda: datetime.now(UTC)))

    def trust(self, policy: TrustPolicy | None = None) -> Trust:
        """What a gateway of this hospital trusts."""
        return Trust.load(
            policy,
            [self.path("root.pem")],
            [self.path("intermediate.pem")],
            [self.path("root.crl"), self.path("intermediate.crl")],
        )

    def _certify(
        self,
        file: str,
        common_name: str,
        key: Key,
        issuer: tuple[x509.Certificate, Key] | None,
        began: datetime,
        *,
        ca: int | None = None,
        timestamping: bool = False,
    ) -> tuple[x509.Certificate, Key]:
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Scanward Demo Hospital"),
                x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            ]
        )
        issuer_name, issuer_key = (issuer[0].subject, issuer[1]) if issuer else (subject, key)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer_name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(began)
            .not_valid_after(began + _YEARS)
            .add_extension(x509.BasicConstraints(ca is not None, ca), critical=True)
            .add_extension(_usage(is_ca=ca is not None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
        )
        if timestamping:
            builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING]), critical=True)
        certificate = builder.sign(issuer_key, hashes.SHA256())
        self.path(f"{file}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.path(f"{file}.key").touch(mode=0o600)
        self.path(f"{file}.key").write_bytes(private)
        return certificate, key


@dataclass(frozen=True, slots=True)
class LocalAuthority:
    """A time-stamping authority that needs no network (RFC 3161 2.4.2); P-256 keys only."""

    certificate: x509.Certificate
    _key: Key
    _at: Callable[[], datetime] = field(repr=False)
    issuers: tuple[x509.Certificate, ...] = ()
    """Go into the token beside the authority's own certificate."""

    def stamp(self, signature: bytes) -> bytes:
        """A TimeStampToken over the signature value."""
        return self.stamp_digest(hashlib.sha256(signature).digest())

    def stamp_digest(self, imprint: bytes) -> bytes:
        """A TimeStampToken over what has this SHA-256, which is all that a remote authority is told."""
        sha256 = der.encode(der.SEQUENCE, der.encode_oid("2.16.840.1.101.3.4.2.1"))
        content_type = der.encode_oid("1.2.840.113549.1.9.16.1.4")
        encoded = self.certificate.public_bytes(Encoding.DER)
        info = der.encode(
            der.SEQUENCE,
            der.encode_integer(1),
            der.encode_oid("1.3.6.1.4.1.99999.2"),
            der.encode(der.SEQUENCE, sha256, der.encode(der.OCTET_STRING, imprint)),
            der.encode_integer(secrets.randbits(63)),
            der.encode(der.GENERALIZED_TIME, self._at().astimezone(UTC).strftime("%Y%m%d%H%M%SZ").encode()),
        )
        named = der.encode(der.SEQUENCE, der.encode(der.OCTET_STRING, hashlib.sha256(encoded).digest()))
        attributes = sorted(
            (
                _attribute("1.2.840.113549.1.9.3", content_type),
                _attribute("1.2.840.113549.1.9.4", der.encode(der.OCTET_STRING, hashlib.sha256(info).digest())),
                _attribute("1.2.840.113549.1.9.16.2.47", der.encode(der.SEQUENCE, der.encode(der.SEQUENCE, named))),
            )
        )
        assert isinstance(self._key, ec.EllipticCurvePrivateKey)
        value = self._key.sign(der.encode(der.SET, *attributes), ec.ECDSA(hashes.SHA256()))
        identifier = der.encode(
            der.SEQUENCE,
            self.certificate.issuer.public_bytes(),
            der.encode_integer(self.certificate.serial_number),
        )
        ecdsa = der.encode(der.SEQUENCE, der.encode_oid("1.2.840.10045.4.3.2"))
        signer = der.encode(
            der.SEQUENCE,
            der.encode_integer(1),
            identifier,
            sha256,
            der.encode(0xA0, *attributes),
            ecdsa,
            der.encode(der.OCTET_STRING, value),
        )
        signed_data = der.encode(
            der.SEQUENCE,
            der.encode_integer(3),
            der.encode(der.SET, sha256),
            der.encode(der.SEQUENCE, content_type, der.encode(0xA0, der.encode(der.OCTET_STRING, info))),
            der.encode(0xA0, encoded, *(issuer.public_bytes(Encoding.DER) for issuer in self.issuers)),
            der.encode(der.SET, signer),
        )
        return der.encode(der.SEQUENCE, der.encode_oid("1.2.840.113549.1.7.2"), der.encode(0xA0, signed_data))


def flip_pixel_bit(data: bytes, place: int = 0) -> bytes:
    """One bit of Pixel Data, in the byte at `place`, changed."""
    element = read(data).get(PIXEL_DATA)
    assert element is not None
    offset = element.offset if element.fragments is None else element.fragments[1].offset
    altered = bytearray(data)
    altered[offset + place] ^= 1
    return bytes(altered)


def strip_signatures(data: bytes) -> bytes:
    """Without the signature macros of the main data set; everything else as it was."""
    return without(data, MAC_PARAMETERS_SEQUENCE, DIGITAL_SIGNATURES_SEQUENCE)


def without(data: bytes, *tags: int) -> bytes:
    """Without some elements of the main data set."""
    for element in reversed(read(data).elements):
        if element.tag in tags:
            data = data[: element.start] + data[element.end :]
    return data


def replace_value(data: bytes, tag: int, value: bytes) -> bytes:
    """With another value of the same length."""
    element = read(data).get(tag)
    assert element is not None
    assert element.length == len(value)
    return data[: element.offset] + value + data[element.offset + element.length :]


def truncated(data: bytes, length: int) -> bytes:
    """Only its first bytes."""
    return data[:length]


def _attribute(oid: str, value: bytes) -> bytes:
    return der.encode(der.SEQUENCE, der.encode_oid(oid), der.encode(der.SET, value))


def _ec() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 3072)


def _usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
