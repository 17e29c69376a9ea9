"""A study that is sent as a whole: which instances came, what became of each, and what they come to together."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.case import Digests
from gateway.errors import ScanError
from gateway.finding import Finding
from gateway.policy import DETECTION
from gateway.reply import Receipt, Reply
from gateway.scan import Scan, Source
from gateway.study.fusion import fuse
from gateway.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Slice:
    """One instance of a study, answered; the same bytes sent twice are one."""

    reply: Reply
    p_value: float | None = None
    """With which it goes into the study's; None where the detectors did not examine it."""
    adjusted: float | None = None
    """The same, for the number of slices: suspect at the false discovery rate q where this is at most q."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A study, judged."""

    study_digest: str | None
    """SHA-256 of Study Instance UID; None where no instance could be read."""
    route: str
    receiver: str
    source: Source
    slices: tuple[Slice, ...]
    """In the order in which they were sent."""
    p_value: float | None
    """Of "every slice is clean"; None where no slice has one."""
    false_discovery_rate: float | None
    """Slices whose adjusted p-value is at most this are suspect; None where the policy has no word for studies."""
    verdict: Verdict
    digests: Digests

    def suspect(self, slice_: Slice) -> bool:
        """Whether the slices together point at this one."""
        rate = self.false_discovery_rate
        return rate is not None and slice_.adjusted is not None and slice_.adjusted <= rate


@dataclass(frozen=True, slots=True)
class StudyReply:
    """The whole answer about a study, after those about its instances."""

    judged: Judged
    receipt: Receipt
    place: int
    """Index of the record in the audit log."""


class Study:
    """What has come of one study so far; thread-safe, since its instances are examined side by side."""

    def __init__(self, route: str, receiver: str, source: Source) -> None:
        self.route = route
        self.receiver = receiver
        self.source = source
        self._lock = threading.Lock()
        self._digest: str | None = None
        self._replies: dict[str, tuple[int, Reply]] = {}

    def admit(self, scan: Scan, number: int) -> None:
        """Let the instance in that was sent as `number`, from 1; what is no readable DICOM is let in, to be refused.

        Raises:
            ScanError: it is of another study than those before, or says of none.
        """
        if scan.elements is None:
            return
        digest = scan.study_digest
        if digest is None:
            raise ScanError(f"instance {number} has no Study Instance UID")
        with self._lock:
            self._digest = self._digest or digest
            if digest != self._digest:
                raise ScanError(f"instance {number} belongs to another study than those before it")

    def answered(self, number: int, reply: Reply) -> None:
        """Keep what was answered about an instance."""
        with self._lock:
            self._replies.setdefault(reply.scan_sha256, (number, reply))

    @property
    def digest(self) -> str | None:
        """SHA-256 of Study Instance UID, as soon as an instance could be read."""
        return self._digest

    @property
    def held(self) -> int:
        """Instances that the policy has held or refused, or would have but for monitor mode."""
        with self._lock:
            return sum(not reply.verdict.meant.disposition.admitted for _, reply in self._replies.values())

    def replies(self) -> tuple[Reply, ...]:
        """What was answered, in the order in which the instances were sent."""
        with self._lock:
            return tuple(reply for _, reply in sorted(self._replies.values(), key=lambda numbered: numbered[0]))


def together(replies: Sequence[Reply]) -> tuple[tuple[Slice, ...], float | None]:
    """The instances as slices of one study, and the p-value of "every slice is clean"; None where none has one."""
    p_values = [_p_value(reply.findings) for reply in replies]
    fused = fuse([p_value for p_value in p_values if p_value is not None])
    if fused is None:
        return tuple(Slice(reply) for reply in replies), None
    adjusted = iter(fused.adjusted)
    slices = tuple(
        Slice(reply) if p_value is None else Slice(reply, p_value, next(adjusted))
        for reply, p_value in zip(replies, p_values, strict=True)
    )
    return slices, fused.p_value


def _p_value(findings: Sequence[Finding]) -> float | None:
    """Of a slice; None where the detectors did not examine it."""
    return next((finding.p_value for finding in findings if finding.stage == DETECTION), None)
