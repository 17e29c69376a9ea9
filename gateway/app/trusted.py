"""A trust policy as it serves: with its certificates, its revocation material, and the digest of all of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

from gateway import documents
from gateway.errors import ConfigError
from gateway.settings.trust import TrustConfig
from signing import Trust, TrustError, TrustPolicy
from signing.material import oldest_in_use
from signing.trust import files_of

Seen: TypeAlias = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of each revocation file."""


@dataclass(frozen=True, slots=True)
class Trusted:
    """A trust policy with its material, and the digest of all of it."""

    trust: Trust
    sha256: str
    """Over the policy file and every file of the material, by role and content; names of files do not count."""
    seen: Seen
    """The revocation files as they were just before they were read."""
    _fixed: Mapping[str, list[str]]
    """Digests of the files that only a reload of the configuration reads again, by role."""

    @classmethod
    def load(cls, name: str, config: TrustConfig) -> Self:
        """Read policy and material; raises `ConfigError`."""
        seen = revocation_files(config)
        try:
            # The service must say what becomes of unsigned scans; the strict default is for the command line.
            policy = TrustPolicy.load(config.policy, mandatory=frozenset({"unsigned"}))
            trust = Trust.load(policy, config.roots, config.intermediates, config.crls, config.ocsp)
            roles = {"policy": (config.policy,), "roots": config.roots, "intermediates": config.intermediates}
            return cls._of(trust, config, seen, {role: sorted(_digests(paths)) for role, paths in roles.items()})
        except TrustError as error:
            raise ConfigError([f"trust.{name}: {error}"]) from error

    def refreshed(self, name: str, config: TrustConfig) -> Self:
        """The same policy and certificates with the revocation material of now; raises `ConfigError`."""
        seen = revocation_files(config)
        try:
            return self._of(self.trust.with_revocation(config.crls, config.ocsp), config, seen, self._fixed)
        except TrustError as error:
            raise ConfigError([f"trust.{name}: {error}"]) from error

    @classmethod
    def _of(cls, trust: Trust, config: TrustConfig, seen: Seen, fixed: Mapping[str, list[str]]) -> Self:
        digests = {**fixed, "crls": sorted(_digests(config.crls)), "ocsp": sorted(_digests(config.ocsp))}
        return cls(trust, hashlib.sha256(documents.canonical(digests)).hexdigest(), seen, fixed)

    @property
    def updated(self) -> float | None:
        """When the oldest revocation material in use was issued, in seconds since the epoch; None without any."""
        oldest = oldest_in_use(self.trust.revocation)
        return None if oldest is None else oldest.timestamp()


def revocation_files(config: TrustConfig) -> Seen:
    """What tells revocation files from those that were there before, without reading them: name, inode, size, time."""
    seen = []
    for path in (*config.crls, *config.ocsp):
        try:
            for file in files_of(path):
                found = file.stat()
                seen.append((str(file), found.st_ino, found.st_size, found.st_mtime_ns))
        except OSError:  # gone, or out of reach: that is a change too, and reading it will say what is wrong
            seen.append((str(path), 0, 0, 0))
    return tuple(seen)


def _digests(paths: tuple[Path, ...]) -> Iterator[str]:
    """SHA-256 of each file, folders entered; raises `TrustError`."""
    for path in paths:
        for file in files_of(path):
            try:
                yield hashlib.sha256(file.read_bytes()).hexdigest()
            except OSError as error:
                raise TrustError(f"{file}: {error.strerror}") from error
