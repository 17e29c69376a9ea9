"""What the audit log records: facts about a call, by digest; never a byte of a scan or of its header."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

from detectors.drift import Drift
from gateway import documents
from gateway.callers.queries import QueryAlarm
from gateway.case import Case
from gateway.errors import GatewayError
from gateway.reply import Receipt
from gateway.study.study import Judged
from gateway.verdict import Verdict

SCHEMA = 1
"""Version of the bodies' fields; written into each."""

_DETAIL_MAX = 200


class Record(Protocol):
    """One line of the log: a kind, and facts that JSON can hold."""

    kind: ClassVar[str]

    def facts(self) -> dict[str, Any]:
        """The fields of the record's body."""


def body(record: Record, at: datetime) -> bytes:
    """The canonical bytes that the tree binds; `at` is aware."""
    return documents.canonical({"schema": SCHEMA, "kind": record.kind, "at": _rfc3339(at), **record.facts()})


@dataclass(frozen=True, slots=True)
class _Facts:
    kind: ClassVar[str]

    def facts(self) -> dict[str, Any]:
        """Every field by its name."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Decided(_Facts):
    """A scan was examined and decided about; written before anything leaves."""

    kind: ClassVar[str] = "decided"

    scan_sha256: str
    sop_instance_digest: str | None
    bytes: int
    received_at: str
    route: str
    receiver: str
    source: str
    """Configured name of the source, and who of it where an identity provider says so."""
    enrolled: bool
    modality: str
    """A defined term, bounded as in metrics."""
    study_held: int
    """Earlier instances of the study, sent as a whole, that were held or refused."""
    disposition: str
    reasons: tuple[str, ...]
    unsafe: tuple[str, ...]
    rules: tuple[str, ...]
    """The policy's rules that called for the disposition."""
    instead_of: dict[str, Any] | None
    """In monitor mode, the verdict that was not carried out."""
    findings: tuple[dict[str, Any], ...]
    """Stage, outcome, reason and statistics of each; the sentences for people are left out."""
    examination_sha256: str
    """Digest of the whole findings and verdict, as the receipt binds it."""
    digests: dict[str, str]
    """SHA-256 of model, profile, artefact, policy and trust; empty where the route has none."""

    @classmethod
    def of(cls, case: Case, verdict: Verdict) -> Decided:
        """The record of one decision."""
        scan = case.scan
        return cls(
            scan_sha256=scan.sha256,
            sop_instance_digest=scan.sop_instance_digest,
            bytes=len(scan.data),
            received_at=_rfc3339(case.received_at),
            route=scan.route,
            receiver=scan.receiver,
            source=scan.source.identity,
            enrolled=scan.source.enrolled,
            modality=scan.modality,
            study_held=case.study_held,
            disposition=verdict.label,
            reasons=tuple(str(reason) for reason in verdict.reasons),
            unsafe=verdict.unsafe,
            rules=verdict.rules,
            instead_of=None if verdict.instead_of is None else documents.of_verdict(verdict.instead_of),
            findings=tuple(_without_prose(documents.of_finding(finding)) for finding in case.findings),
            examination_sha256=documents.examination_sha256(case.findings, verdict),
            digests=asdict(case.digests),
        )


@dataclass(frozen=True, slots=True)
class Answered(_Facts):
    """A receipt was signed and the answer may leave; written before it does."""

    kind: ClassVar[str] = "answered"

    scan_sha256: str
    route: str
    receiver: str
    source: str
    """As in the `decided` record: the same bytes from another sender are another question."""
    receipt_sha256: str

    @classmethod
    def of(cls, case: Case, receipt: Receipt) -> Answered:
        """The record of one answer."""
        scan = case.scan
        return cls(scan.sha256, scan.route, scan.receiver, scan.source.identity, receipt.sha256)


@dataclass(frozen=True, slots=True)
class StudyDecided(_Facts):
    """A study was decided about, after each of its instances; written before the sender hears."""

    kind: ClassVar[str] = "study"

    study_digest: str | None
    route: str
    receiver: str
    source: str
    instances: tuple[int, ...]
    """Index of each instance's `answered` record, in the order in which they were sent."""
    p_values: tuple[float | None, ...]
    """With which each went into the study's; none where the detectors did not examine it."""
    suspect: tuple[int, ...]
    """Those of `instances` that the slices together point at."""
    p_value: float | None
    false_discovery_rate: float | None
    disposition: str
    reasons: tuple[str, ...]
    unsafe: tuple[str, ...]
    instead_of: dict[str, Any] | None
    examination_sha256: str
    """Digest of everything found and decided, as the study's receipt binds it."""
    receipt_sha256: str
    digests: dict[str, str]

    @classmethod
    def of(cls, judged: Judged, receipt: Receipt) -> StudyDecided:
        """The record of one study."""
        verdict = judged.verdict
        return cls(
            study_digest=judged.study_digest,
            route=judged.route,
            receiver=judged.receiver,
            source=judged.source.identity,
            instances=tuple(each.reply.place for each in judged.slices),
            p_values=tuple(each.p_value for each in judged.slices),
            suspect=tuple(each.reply.place for each in judged.slices if judged.suspect(each)),
            p_value=judged.p_value,
            false_discovery_rate=judged.false_discovery_rate,
            disposition=verdict.disposition.label,
            reasons=tuple(str(reason) for reason in verdict.reasons),
            unsafe=verdict.unsafe,
            instead_of=None if verdict.instead_of is None else documents.of_verdict(verdict.instead_of),
            examination_sha256=documents.study_sha256(judged),
            receipt_sha256=receipt.sha256,
            digests=asdict(judged.digests),
        )


@dataclass(frozen=True, slots=True)
class Failed(_Facts):
    """A scan was decided about, and the protected model did not answer, or there was no room to hold the scan."""

    kind: ClassVar[str] = "failed"

    scan_sha256: str
    route: str
    error: str
    """Type of the error; a remote model's own words are not recorded."""

    @classmethod
    def of(cls, case: Case, error: GatewayError) -> Failed:
        """The record of one failure after the decision."""
        return cls(case.scan.sha256, case.scan.route, type(error).__name__)


@dataclass(frozen=True, slots=True)
class _Reviewed(_Facts):
    """What a person did with a held scan; written before it takes effect."""

    quarantine_id: str
    scan_sha256: str
    route: str
    by: str
    """Configured name of the caller."""
    reason: str
    """The person's own words; empty where none are asked for."""


@dataclass(frozen=True, slots=True)
class Shown(_Reviewed):
    """Somebody was given the bytes of a held scan."""

    kind: ClassVar[str] = "shown"


@dataclass(frozen=True, slots=True)
class Agreed(_Reviewed):
    """The first of two people agreed to the release of a held scan; it stays held."""

    kind: ClassVar[str] = "agreed"


@dataclass(frozen=True, slots=True)
class Confirmed(_Reviewed):
    """Somebody looked at a held scan, and it stays out."""

    kind: ClassVar[str] = "confirmed"


@dataclass(frozen=True, slots=True)
class Released(_Reviewed):
    """A held scan goes on to its model; without an `answered` behind it, it did not get there.

    `by` is who agreed last, and `released_by` all who did. A scan that was released before and has no answer yet is
    recorded again at each further try.
    """

    kind: ClassVar[str] = "released"

    released_by: tuple[str, ...]
    unsafe: tuple[str, ...]
    examination_sha256: str
    """Digest of the findings of now and the verdict, as the receipt binds it."""
    digests: dict[str, str]
    """SHA-256 of model, profile, artefact, policy and trust that it was examined with anew."""


@dataclass(frozen=True, slots=True)
class Expired(_Facts):
    """A scan left the quarantine because of its age; written before it is removed."""

    kind: ClassVar[str] = "expired"

    quarantine_id: str
    scan_sha256: str
    route: str
    state: str
    """Where it stood: `held` means that nobody had decided about it."""
    since: str
    """RFC 3339, UTC: when it was held, or decided about."""


@dataclass(frozen=True, slots=True)
class Forwarded(_Facts):
    """An admitted scan was taken by a DICOM destination."""

    kind: ClassVar[str] = "forwarded"

    scan_sha256: str
    route: str
    destination: str
    """Configured name."""


@dataclass(frozen=True, slots=True)
class Refused(_Facts):
    """A call could not become a scan: too large, cut off, no such route."""

    kind: ClassVar[str] = "refused"

    receiver: str
    source: str
    error: str
    detail: str
    """The error's own sentence, which by contract holds no header value."""

    @classmethod
    def of(cls, error: GatewayError, *, receiver: str, source: str) -> Refused:
        """The record of one call that was turned away at the door."""
        return cls(receiver, source, type(error).__name__, str(error)[:_DETAIL_MAX])


@dataclass(frozen=True, slots=True)
class Alarmed(_Facts):
    """Many scans of one source look like one of its scans that was held; it changes no verdict."""

    kind: ClassVar[str] = "alarmed"

    scan_sha256: str
    """The scan that was one too many."""
    source: str
    held_sha256: str
    """The scan that they look like."""
    count: int

    @classmethod
    def of(cls, case: Case, alarm: QueryAlarm) -> Alarmed:
        """The record of one alarm."""
        return cls(case.scan.sha256, case.scan.source.identity, alarm.held_sha256, alarm.count)


@dataclass(frozen=True, slots=True)
class Drifted(_Facts):
    """A source no longer sends scans like those that were calibrated on: its detectors' guarantee is suspended."""

    kind: ClassVar[str] = "drifted"

    scan_sha256: str
    """The scan with which it came to light; by itself it need not be unusual."""
    route: str
    source: str
    artefact_sha256: str
    detector: str
    direction: str
    """`suspicious` or `calm`."""
    evidence: float
    threshold: float

    @classmethod
    def of(cls, case: Case, drift: Drift) -> Drifted:
        """The record of one alarm."""
        return cls(
            case.scan.sha256, case.scan.route, case.scan.source.name, case.digests.artefact,
            drift.detector, drift.direction, drift.evidence, drift.threshold,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Inspected(_Facts):
    """Somebody read records of this log; written before they leave."""

    kind: ClassVar[str] = "inspected"

    source: str
    first: int
    records: int


@dataclass(frozen=True, slots=True)
class Pruned(_Facts):
    """Records are old enough to go; written, and under a signed checkpoint, before the first of them does."""

    kind: ClassVar[str] = "pruned"

    first: int
    """Index of the first record that still had its body;"""
    end: int
    """and of the first that keeps it: all before this one may be pruned."""
    before: str
    """RFC 3339, UTC: when the checkpoint over those records was signed."""
    days_max: float
    """The configured age."""


@dataclass(frozen=True, slots=True)
class Started(_Facts):
    """The gateway came up with this configuration."""

    kind: ClassVar[str] = "started"

    config_sha256: str
    version: str


def _without_prose(finding: dict[str, Any]) -> dict[str, Any]:
    return {key: finding[key] for key in ("stage", "outcome", "reason", "score", "p_value", "p_values")}


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
