"""The decision about one scan and its reasons."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from gateway.finding import GatewayReason
from signing import Reason


class Disposition(IntEnum):
    """What happens to a scan; ordered, so that the worst of several is their maximum."""

    ADMIT = 0
    ADMIT_DENOISED = 1
    QUARANTINE = 2
    REJECT = 3

    @property
    def admitted(self) -> bool:
        """Whether the protected model is asked."""
        return self <= Disposition.ADMIT_DENOISED

    @property
    def label(self) -> str:
        """Lower-case name, as in metrics, tables and JSON."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Permission, as against observation: made by the policy, or by the people who released a held scan."""

    disposition: Disposition
    reasons: tuple[Reason | GatewayReason, ...]
    """Why it is not a plain admission, gravest stage first; empty on ADMIT."""
    unsafe: tuple[str, ...] = ()
    """Names of the `unsafe_…` settings without which the scan would not have been admitted; each use is counted."""
    rules: tuple[str, ...] = ()
    """Names of the policy's rules that called for the disposition."""
    instead_of: Verdict | None = None
    """In monitor mode, the verdict that was not carried out."""
    released_by: tuple[str, ...] = ()
    """Who let a held scan go on, in place of the policy; only beside ADMIT."""

    @property
    def label(self) -> str:
        """What became of the scan, as in records and receipts: the disposition's name, or `released_by`."""
        return "released_by" if self.released_by else self.disposition.label

    @property
    def meant(self) -> Verdict:
        """What would have been done without monitor mode; without it, what is done."""
        return self.instead_of or self
