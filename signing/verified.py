"""The signature for whose sake an object is accepted, and exactly what it covers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from signing.report import Identity, SignatureReport
from signing.view import VerifiedView


@dataclass(frozen=True, slots=True)
class VerifiedSignature:
    """The signature for whose sake an object is accepted."""

    report: SignatureReport
    signatures: tuple[SignatureReport, ...]
    """All of the object's, this one included."""
    view: VerifiedView
    """Exactly what it covers."""
    signed_digest: str
    """Of the canonical stream of the covered elements, in hexadecimal digits: the same content, the same digest."""

    @property
    def profile(self) -> str:
        """The most demanding profile that its coverage satisfies."""
        return self.report.profile

    @property
    def signer(self) -> Identity:
        """Whose key signed."""
        assert self.report.signer is not None
        return self.report.signer

    @property
    def purpose(self) -> int | None:
        """Digital Signature Purpose."""
        return self.report.purpose

    @property
    def mac(self) -> str:
        """MAC Algorithm."""
        return self.report.mac

    @property
    def algorithm(self) -> str:
        """The key's algorithm and size."""
        return self.report.algorithm

    @property
    def signed_at(self) -> datetime | None:
        """The signer's claim."""
        return self.report.signed_at

    @property
    def timestamp(self) -> datetime | None:
        """Time of the time-stamp token, if there is one."""
        return self.report.timestamp

    @property
    def checks(self) -> Mapping[str, str]:
        """Outcome of each of the eight checks, by name."""
        return self.report.checks

    @property
    def covers(self) -> tuple[str, ...]:
        """Keywords of the attributes covered."""
        return self.report.covers

    @property
    def unsigned(self) -> tuple[str, ...]:
        """Keywords of the attributes left out."""
        return self.report.unsigned
