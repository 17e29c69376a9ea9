"""Whom to believe: policy, roots, intermediates and revocation material, with certificate verdicts cached."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path as FilePath
from typing import NamedTuple

from cryptography import x509
from cryptography.x509 import ocsp as x509_ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from signing.certificates import (
    CACHED_MAX,
    NOT_FOR_SIGNING,
    Path,
    common_name,
    extension,
    find_paths,
    fingerprint,
    key_weakness,
    load_certificates,
)
from signing.errors import TrustError
from signing.material import parse_crl, parse_ocsp
from signing.policy import TrustPolicy
from signing.reasons import Reason
from signing.revocation import Revocation

MATERIAL_BYTES_MAX = 64 * 2**20  # a national CRL is 10 MiB
_USAGES = {
    "digitalSignature": "digital_signature",
    "nonRepudiation": "content_commitment",
    "keyEncipherment": "key_encipherment",
    "dataEncipherment": "data_encipherment",
    "keyAgreement": "key_agreement",
}


class Problem(NamedTuple):
    """One thing that stands against a signature."""

    check: str
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Trust:
    """Everything that a verdict depends on beside the object and the time."""

    policy: TrustPolicy
    roots: Sequence[x509.Certificate]
    intermediates: Sequence[x509.Certificate] = ()
    revocation: Revocation = field(default_factory=Revocation)
    _paths: dict[tuple[str, ...], tuple[Path, ...]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(
        cls,
        policy: TrustPolicy | str | FilePath | None = None,
        roots: Iterable[str | FilePath] = (),
        intermediates: Iterable[str | FilePath] = (),
        crls: Iterable[str | FilePath] = (),
        ocsp: Iterable[str | FilePath] = (),
    ) -> Trust:
        """Read trust material from PEM or DER files, or folders of them.

        Raises:
            TrustError: a file cannot be read or is not what it should be, or there is no root.
        """
        chosen = policy if isinstance(policy, TrustPolicy) else TrustPolicy.load(policy) if policy else TrustPolicy()
        anchors = [certificate for path in roots for certificate in _certificates(path)]
        others = [certificate for path in intermediates for certificate in _certificates(path)]
        if not anchors:
            raise TrustError("no trusted root certificate")
        return cls(chosen, tuple(anchors), tuple(others), load_revocation(crls, ocsp, others))

    def with_revocation(self, crls: Iterable[str | FilePath], ocsp: Iterable[str | FilePath]) -> Trust:
        """The same policy and certificates with revocation material that is read now; raises `TrustError`."""
        return replace(self, revocation=load_revocation(crls, ocsp, self.intermediates))

    def tolerates(self, problem: Problem) -> bool:
        """It is reported, but by the policy's word does not count."""
        return problem.reason is Reason.REVOCATION_UNKNOWN and self.policy.revocation == "unsafe_soft_fail"

    def judge(self, certificate: x509.Certificate, moment: datetime, at: datetime) -> tuple[Problem, ...]:
        """What stands against this certificate as a signer of objects.

        Args:
            certificate: the signer's.
            moment: when the signature is known to have existed: a timestamp's time, else `at`.
            at: now; revocation material must be current.
        """
        chain = self.judge_chain(certificate, moment, at)
        if chain and chain[0].reason is Reason.UNTRUSTED:
            return chain
        return (*chain, *self._judge_use(certificate))

    def judge_chain(
        self, certificate: x509.Certificate, moment: datetime, at: datetime, others: Sequence[x509.Certificate] = ()
    ) -> tuple[Problem, ...]:
        """What stands against the best path from this certificate to a root: nothing, if one path is good.

        `others` are certificates that came along, and may serve as intermediates.
        """
        paths = self._paths_of(certificate, others)
        if not paths:
            return (Problem("chain", Reason.UNTRUSTED, "the certificate chains to no trusted root"),)
        judged = [(*_dates(path, moment), *self._revoked(path, moment, at), *self._weak(path)) for path in paths]
        return min(judged, key=len)

    def _paths_of(self, certificate: x509.Certificate, others: Sequence[x509.Certificate]) -> tuple[Path, ...]:
        key = (fingerprint(certificate), *map(fingerprint, others))
        paths = self._paths.get(key)
        if paths is None:
            if len(self._paths) >= CACHED_MAX:
                self._paths.clear()
            paths = self._paths[key] = find_paths(certificate, self.roots, (*self.intermediates, *others))
        return paths

    def _revoked(self, path: Path, moment: datetime, at: datetime) -> Iterator[Problem]:
        if self.policy.revocation == "unsafe_off":
            return
        for certificate, issuer in pairwise(path):
            status = self.revocation.status(certificate, issuer, at, self.policy.revocation_age_s_max)
            if status.revoked_at is not None:
                if status.revoked_at <= moment:
                    yield Problem("revocation", Reason.REVOKED, f"{_who(certificate)} was revoked")
            elif not status.known:
                yield Problem("revocation", Reason.REVOCATION_UNKNOWN, f"{_who(certificate)}: {status.detail}")

    def _weak(self, path: Path) -> Iterator[Problem]:
        for certificate in path:
            weakness = key_weakness(certificate, self.policy.min_rsa_bits, self.policy.min_ec_bits)
            if weakness is not None:
                yield Problem("signer", Reason.WEAK_KEY, f"{_who(certificate)} has {weakness}")

    def _judge_use(self, certificate: x509.Certificate) -> Iterator[Problem]:
        """RFC 5280 4.2.1.3, 4.2.1.12: the certificate must say that it is for signing, and not only for TLS."""
        usage = extension(certificate, x509.KeyUsage)
        missing = [name for name in self.policy.key_usage if usage is None or not getattr(usage, _USAGES[name])]
        if missing:
            yield Problem("signer", Reason.KEY_USAGE, f"{_who(certificate)} lacks the key usage {missing[0]}")
        extended = extension(certificate, x509.ExtendedKeyUsage)
        given = frozenset(extended or ())
        required = frozenset(map(x509.ObjectIdentifier, self.policy.required_eku))
        if not required <= given or (given and given <= NOT_FOR_SIGNING):
            detail = f"{_who(certificate)} is not certified for signing objects"
            yield Problem("signer", Reason.EXTENDED_KEY_USAGE, detail)


def load_revocation(
    crls: Iterable[str | FilePath], ocsp: Iterable[str | FilePath], responders: Sequence[x509.Certificate] = ()
) -> Revocation:
    """Read revocation lists and OCSP responses from files, or folders of them; raises `TrustError`."""
    return Revocation(
        [_crl(file) for path in crls for file in files_of(path)],
        [_ocsp(file) for path in ocsp for file in files_of(path)],
        responders,
    )


def is_timestamping_only(certificate: x509.Certificate) -> bool:
    """RFC 3161 2.3: extended key usage is critical and names time stamping alone."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except (x509.ExtensionNotFound, ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return False
    return found.critical and list(found.value) == [ExtendedKeyUsageOID.TIME_STAMPING]


def _dates(path: Path, moment: datetime) -> Iterator[Problem]:
    for certificate in path:
        if moment < certificate.not_valid_before_utc:
            yield Problem("chain", Reason.NOT_YET_VALID, f"{_who(certificate)} is not valid yet")
        if moment > certificate.not_valid_after_utc:
            yield Problem("chain", Reason.EXPIRED, f"{_who(certificate)} has expired")


def _who(certificate: x509.Certificate) -> str:
    return f"the certificate of {common_name(certificate)!r}"


def files_of(path: str | FilePath) -> Iterator[FilePath]:
    """The file, or the files of the folder, that material is read from."""
    given = FilePath(path)
    if given.is_dir():
        # A file that is being written lies beside the one that it will replace.
        yield from sorted(file for file in given.iterdir() if file.is_file() and file.suffix != ".part")
    else:
        yield given


def _read(file: FilePath) -> bytes:
    try:
        if file.stat().st_size > MATERIAL_BYTES_MAX:
            raise TrustError(f"{file}: larger than {MATERIAL_BYTES_MAX} bytes")
        return file.read_bytes()
    except OSError as error:
        raise TrustError(f"{file}: {error.strerror}") from error


def _certificates(path: str | FilePath) -> Iterator[x509.Certificate]:
    given = FilePath(path)
    suffixes = {".pem", ".crt", ".cer", ".der"}
    for file in files_of(path):
        if given.is_dir() and file.suffix.lower() not in suffixes:
            continue
        try:
            yield from load_certificates(_read(file))
        except ValueError as error:
            raise TrustError(f"{file}: not a certificate") from error


def _crl(file: FilePath) -> x509.CertificateRevocationList:
    data = _read(file)
    try:
        return parse_crl(data)
    except TrustError as error:
        raise TrustError(f"{file}: {error}") from error


def _ocsp(file: FilePath) -> x509_ocsp.OCSPResponse:
    data = _read(file)
    try:
        return parse_ocsp(data)
    except TrustError as error:
        raise TrustError(f"{file}: {error}") from error
