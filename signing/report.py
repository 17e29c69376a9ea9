"""What was found: outcomes of the checks, and reports of signatures, as `scanward verify --json` prints them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from signing.dictionary import keyword
from signing.reasons import Reason


class Outcome(StrEnum):
    """The words of ETSI EN 319 102-1, and one for a check that had no occasion."""

    PASSED = "passed"
    FAILED = "failed"
    INDETERMINATE = "indeterminate"
    NOT_RUN = "not_run"


CHECKS = ("crypto", "coverage", "signer", "chain", "revocation", "timestamp", "binding", "freshness")


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose key signed."""

    subject: str
    """RFC 4514."""
    issuer: str
    """RFC 4514."""
    fingerprint_sha256: str

    def __str__(self) -> str:
        return self.subject


@dataclass(frozen=True, slots=True)
class SignatureReport:
    """One signature, and everything that was found about it."""

    path: str
    """Where it is: empty for the main data set, else such as `ReferencedSeriesSequence[0]`."""
    uid: str
    """Digital Signature UID (0400,0100)."""
    profile: str
    """The most demanding profile that its coverage satisfies."""
    purpose: int | None
    """Digital Signature Purpose, a code of ASTM-sigpurpose."""
    signer: Identity | None
    algorithm: str
    """The key's, such as `RSA-3072`."""
    mac: str
    """MAC Algorithm (0400,0015)."""
    signed_at: datetime | None
    """Digital Signature DateTime: the signer's claim."""
    timestamp: datetime | None
    """Time of a valid time-stamp token."""
    covered_tags: tuple[int, ...]
    unsigned_tags: tuple[int, ...]
    checks: Mapping[str, str]
    reason: Reason
    detail: str

    @property
    def covers(self) -> tuple[str, ...]:
        """Keywords of the attributes that its MAC covers."""
        return tuple(map(keyword, self.covered_tags))

    @property
    def unsigned(self) -> tuple[str, ...]:
        """Keywords of the attributes that it leaves out."""
        return tuple(map(keyword, self.unsigned_tags))

    def as_json(self) -> dict[str, Any]:
        """The entry under `signatures`."""
        signer = self.signer
        return {
            "path": self.path,
            "uid": self.uid,
            "profile": self.profile,
            "purpose": self.purpose,
            "signer": {
                "subject": signer.subject if signer else "",
                "issuer": signer.issuer if signer else "",
                "fingerprint_sha256": signer.fingerprint_sha256 if signer else "",
            },
            "algorithm": self.algorithm,
            "mac": self.mac,
            "signed_at": _rfc3339(self.signed_at) or "",
            "timestamp": _rfc3339(self.timestamp),
            "covers": list(self.covers),
            "unsigned": list(self.unsigned),
        }


def checks_not_run() -> dict[str, str]:
    """The checks of an object that could not be examined."""
    return dict.fromkeys(CHECKS, str(Outcome.NOT_RUN))


def worst(reports: Collection[SignatureReport]) -> SignatureReport:
    """The report, of those with something against them, whose reason takes precedence."""
    return min((each for each in reports if each.reason is not Reason.OK), key=lambda each: each.reason.precedence)


def _rfc3339(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")
