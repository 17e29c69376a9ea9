"""Fetches revocation lists and OCSP responses into the folders that a gateway reads them from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.x509 import ocsp

from gateway import durable
from gateway.errors import ConfigError
from gateway.fetching import FetchError, fetch
from gateway.settings.trust import TrustConfig
from signing import Trust, TrustError, TrustPolicy
from signing.certificates import common_name, load_certificates
from signing.material import (
    Material,
    admit_crl,
    admit_ocsp,
    crl_addresses,
    issuer_of,
    ocsp_addresses,
    ocsp_request,
    parse_crl,
    parse_ocsp,
)
from signing.trust import MATERIAL_BYTES_MAX, files_of

OCSP_BYTES_MAX = 1 << 20
"""Of a response with the certificates of its responder."""

_READABLE_BY_ALL = 0o644  # lists of withdrawn certificates are public, and the gateway may be another user
_OCSP_REQUEST = "application/ocsp-request"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one list or one certificate's response."""

    trust: str
    """Name of the [trust.NAME]."""
    kind: str
    """`crl` or `ocsp`."""
    about: str
    """Common name of the authority whose list it is, or of the certificate that was asked after."""
    url: str
    """The one that the result is about."""
    result: str
    """`written`, `unchanged`, `refused` (what came may not be used), `unreachable`, or `unreadable` (a file)."""
    detail: str = ""
    file: Path | None = None
    material: Material | None = None
    current: bool = False
    """A gateway may take a certificate as unrevoked on its word."""

    @property
    def ok(self) -> bool:
        """There is material, and it is current."""
        return self.result in {"written", "unchanged"} and self.current

    def as_json(self) -> dict[str, Any]:
        """The entry under `sources`."""
        next_update = self.material.next_update if self.material else None
        return {
            "trust": self.trust,
            "kind": self.kind,
            "about": self.about,
            "url": self.url,
            "result": self.result,
            "detail": self.detail,
            "file": str(self.file) if self.file else None,
            "this_update": self.material.this_update.isoformat() if self.material else None,
            "next_update": next_update.isoformat() if next_update else None,
            "ok": self.ok,
        }


def refresh(policies: Mapping[str, TrustConfig], at: datetime, seconds_max: float) -> list[Outcome]:
    """Fetch for every trust policy what its certificates and its configuration name.

    Nothing is replaced but by something newer that the right authority signed; whatever fails, the old stays.

    Raises:
        ConfigError: a policy has nowhere to put what is fetched, or nothing at all is named.
    """
    fetcher = _Fetcher(seconds_max)
    outcomes = [
        outcome for name, config in policies.items() for outcome in _Refresh.of(name, config, at, fetcher).outcomes()
    ]
    if not outcomes:
        raise ConfigError(
            ["trust: no certificate names an http address of its list or responder, and none is configured (refresh)"]
        )
    return outcomes


@dataclass(slots=True)
class _Fetcher:
    """Asks for the same thing once in a pass, however many policies want it."""

    seconds_max: float
    _answers: dict[tuple[str, bytes | None], bytes | FetchError] = field(default_factory=dict)

    def __call__(self, url: str, body: bytes | None, bytes_max: int) -> bytes:
        key = url, body
        if key not in self._answers:
            kind = _OCSP_REQUEST if body is not None else None
            try:
                answer: bytes | FetchError = fetch(
                    url, body=body, content_type=kind, bytes_max=bytes_max, seconds_max=self.seconds_max
                )
            except FetchError as error:
                answer = error
            self._answers[key] = answer
        known = self._answers[key]
        if isinstance(known, FetchError):
            raise known
        return known


@dataclass(frozen=True, slots=True)
class _Refresh:
    """One policy's turn."""

    name: str
    config: TrustConfig
    trust: Trust
    """Its policy, roots and intermediates."""
    signers: Sequence[x509.Certificate]
    at: datetime
    fetch: _Fetcher

    @classmethod
    def of(cls, name: str, config: TrustConfig, at: datetime, fetcher: _Fetcher) -> Self:
        try:
            trust = Trust.load(TrustPolicy.load(config.policy), config.roots, config.intermediates)
            paths = [file for path in config.refresh.certificates for file in files_of(path)]
            signers = tuple(each for path in paths for each in load_certificates(path.read_bytes()))
        except TrustError as error:
            raise ConfigError([f"trust.{name}: {error}"]) from error
        except ValueError as error:
            raise ConfigError([f"trust.{name}.refresh.certificates: {error}"]) from error
        return cls(name, config, trust, signers, at, fetcher)

    def outcomes(self) -> Iterator[Outcome]:
        """(1) the lists (2) the responses; each only where a folder for them is configured."""
        if self.config.crls:
            yield from self._lists(_folder(f"trust.{self.name}.crls", self.config.crls))  # (1)
        if self.config.ocsp:
            yield from self._responses(_folder(f"trust.{self.name}.ocsp", self.config.ocsp))  # (2)

    def _lists(self, folder: Path) -> Iterator[Outcome]:
        present: list[x509.CertificateRevocationList] = []
        yield from self._present("crl", self.config.crls, parse_crl, present)
        for urls, issuers in self._points():
            about = common_name(issuers[0]) if len({each.subject for each in issuers}) == 1 else ""

            def judge(data: bytes, issuers: Sequence[x509.Certificate] = issuers) -> Material:
                return admit_crl(data, issuers, present, self.at)

            outcome = self._obtain("crl", about, urls, None, MATERIAL_BYTES_MAX, judge, folder)
            if outcome.result == "written" and outcome.material is not None:
                present.append(parse_crl(outcome.material.encoded))
            yield outcome

    def _points(self) -> Iterator[tuple[tuple[str, ...], Sequence[x509.Certificate]]]:
        """The addresses of each list, and whose it should be."""
        authorities = self._authorities
        seen: set[tuple[tuple[str, ...], bytes]] = set()
        for certificate in self._asked_after:
            issuers = [each for each in authorities if each.subject == certificate.issuer]
            for urls in crl_addresses(certificate):
                usable = _over_http(urls)
                if usable and issuers and (key := (usable, certificate.issuer.public_bytes())) not in seen:
                    seen.add(key)
                    yield usable, issuers
        for url in self.config.refresh.crl_urls:
            if not any(url in urls for urls, _ in seen):
                yield (url,), authorities

    def _responses(self, folder: Path) -> Iterator[Outcome]:
        present: list[ocsp.OCSPResponse] = []
        yield from self._present("ocsp", self.config.ocsp, parse_ocsp, present)
        for certificate in self._asked_after:
            issuer = issuer_of(certificate, self._authorities)
            urls = _over_http(ocsp_addresses(certificate)) or self.config.refresh.ocsp_urls
            if issuer is None or not urls:
                continue
            known = certificate, issuer, self.trust.intermediates

            def judge(data: bytes, known: tuple[Any, Any, Any] = known) -> Material:
                return admit_ocsp(data, *known, present, self.at)

            question = ocsp_request(certificate, issuer)
            yield self._obtain("ocsp", common_name(certificate), urls, question, OCSP_BYTES_MAX, judge, folder)

    def _obtain(
        self,
        kind: str,
        about: str,
        urls: Sequence[str],
        body: bytes | None,
        bytes_max: int,
        judge: Callable[[bytes], Material],
        folder: Path,
    ) -> Outcome:
        """What the first address gave that may be used; the others are there for when it fails."""
        outcome = Outcome(self.name, kind, about, "", "unreachable", "no address")
        for url in urls:
            try:
                material = judge(self.fetch(url, body, bytes_max))
            except (FetchError, TrustError) as error:
                result = "unreachable" if isinstance(error, FetchError) else "refused"
                if outcome.result != "refused":  # which is graver than that another address did not answer
                    outcome = Outcome(self.name, kind, about, url, result, str(error))
                continue
            current = material.is_current(self.at, self.trust.policy.revocation_age_s_max)
            detail = "" if current else "out of date"
            if not material.new:
                return Outcome(self.name, kind, about, url, "unchanged", detail, None, material, current)
            file = folder / f"{_slug(about)}-{material.subject[:16]}.{kind}"
            durable.replace(file, material.encoded, mode=_READABLE_BY_ALL)
            return Outcome(self.name, kind, about, url, "written", detail, file, material, current)
        return outcome

    def _present(
        self, kind: str, paths: Sequence[Path], parse: Callable[[bytes], Any], into: list[Any]
    ) -> Iterator[Outcome]:
        """Read what is there; a file that cannot be read keeps the gateway from taking any, so it is named."""
        for file in (each for path in paths for each in files_of(path)):
            try:
                into.append(parse(file.read_bytes()))
            except TrustError as error:
                yield Outcome(self.name, kind, "", "", "unreadable", f"{file}: {error}", file)

    @property
    def _authorities(self) -> Sequence[x509.Certificate]:
        return (*self.trust.roots, *self.trust.intermediates)

    @property
    def _asked_after(self) -> Sequence[x509.Certificate]:
        """Each certificate that somebody else issued, once; roots are believed because they are configured."""
        certificates = (*self.trust.intermediates, *self.signers)
        return tuple(dict.fromkeys(each for each in certificates if each.subject != each.issuer))


def _folder(key: str, paths: Sequence[Path]) -> Path:
    folder = next((path for path in paths if path.is_dir()), None)
    if folder is None:
        raise ConfigError([f"{key}: none of them is a folder, so there is no place for what is fetched"])
    return folder


def _over_http(urls: Sequence[str]) -> tuple[str, ...]:
    return tuple(url for url in urls if url.startswith(("http://", "https://")))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "authority"
