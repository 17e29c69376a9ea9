"""The trust policy: what a signature must be for its object to be accepted, read from TOML."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cryptography import x509

from signing.certificates import common_name, fingerprint
from signing.errors import TrustError

PROFILES = ("inference", "base", "creator", "authorization", "sr", "sr-verified", "none")
MACS = ("SHA256", "SHA384", "SHA512", "SHA1", "MD5", "RIPEMD160")
KEY_USAGES = ("digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement")


@dataclass(frozen=True, slots=True)
class AllowedSigner:
    """Who may sign. Every fact that is given must match."""

    fingerprint_sha256: str | None = None
    common_name: str | None = None
    subject: str | None = None
    """RFC 4514."""
    issuer: str | None = None
    """RFC 4514."""
    sop_classes: tuple[str, ...] = ()
    """SOP Class UIDs that this signer may vouch for; empty: all."""
    only_additional: bool = False
    """Never the sole signature on an image."""

    def matches(self, certificate: x509.Certificate, sop_class: str | None) -> bool:
        """This entry speaks of this certificate and allows this kind of object."""
        return (
            (self.fingerprint_sha256 is None or _hex(self.fingerprint_sha256) == fingerprint(certificate))
            and (self.common_name is None or self.common_name == common_name(certificate))
            and (self.subject is None or _name(self.subject) == certificate.subject)
            and (self.issuer is None or _name(self.issuer) == certificate.issuer)
            and (not self.sop_classes or sop_class in self.sop_classes)
        )


@dataclass(frozen=True, slots=True)
class Binding:
    """Which signers a source may come with. Every fact that is given must match for the binding to apply."""

    signers: tuple[str, ...]
    """Common names, or SHA-256 fingerprints."""
    calling_ae: str | None = None
    tls_subject: str | None = None
    manufacturer: str | None = None
    model: str | None = None
    serial: str | None = None
    modality: str | None = None

    def admits(self, certificate: x509.Certificate) -> bool:
        """The certificate is one of `signers`."""
        return common_name(certificate) in self.signers or fingerprint(certificate) in map(_hex, self.signers)


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """What is required of a signature; the defaults are the strict values."""

    required_profile: str = "inference"
    unsigned: str = "reject"
    min_rsa_bits: int = 2048
    min_ec_bits: int = 256
    mac: tuple[str, ...] = ("SHA256", "SHA384", "SHA512")
    key_usage: tuple[str, ...] = ("digitalSignature",)
    required_eku: tuple[str, ...] = ()
    revocation: str = "hard-fail"
    revocation_age_s_max: int = 604800
    timestamp: str = "if-present"
    age_s_max: int = 0
    unsigned_attributes: str = "reject"
    allowed_signers: tuple[AllowedSigner, ...] | None = None
    """None: any signer that chains to a root."""
    bindings: tuple[Binding, ...] = ()

    def __post_init__(self) -> None:
        for key, allowed in _CHOICES.items():
            value = getattr(self, key)
            for word in value if isinstance(value, tuple) else (value,):
                if word not in allowed:
                    raise TrustError(f"{key}: {word!r} is none of {', '.join(allowed)}")
        for key, least in (("min_rsa_bits", 1024), ("min_ec_bits", 256), ("revocation_age_s_max", 0), ("age_s_max", 0)):
            if getattr(self, key) < least:
                raise TrustError(f"{key}: at least {least}")
        for oid in self.required_eku:
            try:
                x509.ObjectIdentifier(oid)
            except ValueError as error:
                raise TrustError(f"required_eku: {oid!r} is not an object identifier") from error
        if not self.mac:
            raise TrustError("mac: names no algorithm, so nothing could be accepted")

    @classmethod
    def load(cls, path: str | Path, *, mandatory: frozenset[str] = frozenset()) -> TrustPolicy:
        """Read a policy file.

        Raises:
            TrustError: unreadable, an unknown key, or a wrong value; says which.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            return cls.from_mapping(tomllib.loads(text), mandatory=mandatory)
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise TrustError(f"trust policy {path}: {error}") from error
        except TrustError as error:
            raise TrustError(f"trust policy {path}: {error}") from error

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], *, mandatory: frozenset[str] = frozenset()) -> TrustPolicy:
        """As `load`, from parsed TOML; the service makes `unsigned` mandatory."""
        missing = sorted(mandatory - set(values))
        if missing:
            raise TrustError(f"{missing[0]}: must be given")
        given = dict(values)
        tables: dict[str, Any] = {}
        if "allowed_signers" in given:
            tables["allowed_signers"] = _tables(AllowedSigner, given.pop("allowed_signers"), "allowed_signers")
            if any(not _identifies(entry) for entry in tables["allowed_signers"]):
                raise TrustError("allowed_signers: an entry names nobody")
        if "bindings" in given:
            tables["bindings"] = _tables(Binding, given.pop("bindings"), "bindings")
        return cls(**_checked(cls, given, ""), **tables)


_CHOICES: dict[str, tuple[str, ...]] = {
    "required_profile": PROFILES,
    "unsigned": ("reject", "quarantine", "unsafe_admit"),
    "mac": MACS,
    "key_usage": KEY_USAGES,
    "revocation": ("hard-fail", "unsafe_soft_fail", "unsafe_off"),
    "timestamp": ("if-present", "required"),
    "unsigned_attributes": ("reject", "drop"),
}


def _identifies(entry: AllowedSigner) -> bool:
    return any((entry.fingerprint_sha256, entry.common_name, entry.subject, entry.issuer))


def _tables(kind: type[Any], tables: object, key: str) -> tuple[Any, ...]:
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise TrustError(f"{key}: must be an array of tables")
    made = []
    for place, table in enumerate(tables):
        try:
            made.append(kind(**_checked(kind, table, f"{key}[{place}].")))
        except TypeError as error:
            raise TrustError(f"{key}[{place}]: {str(error).partition(' ')[2]}") from error
    for entry in made:
        for name in ("subject", "issuer"):
            if getattr(entry, name, None) is not None:
                _name(getattr(entry, name))
    return tuple(made)


def _checked(kind: type[Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Values by field, each of the type that the field declares."""
    declared = {item.name: str(item.type) for item in fields(kind)}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in declared:
            raise TrustError(f"{where}{key}: unknown")
        wanted = declared[key].removesuffix(" | None")
        if wanted.startswith("tuple"):
            if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
                raise TrustError(f"{where}{key}: must be a list of strings")
            checked[key] = tuple(value)
        elif type(value).__name__ != wanted:
            raise TrustError(f"{where}{key}: must be {wanted}, not {type(value).__name__}")
        else:
            checked[key] = value
    return checked


def _hex(text: str) -> str:
    return text.replace(":", "").lower()


def _name(text: str) -> x509.Name:
    try:
        return x509.Name.from_rfc4514_string(text)
    except ValueError as error:
        raise TrustError(f"{text!r} is not an RFC 4514 name") from error
