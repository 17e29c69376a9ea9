"""What people do with held scans: look, agree, confirm; and what time does to them. Each act is on record first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import structlog

from gateway.audit.log import AuditLog
from gateway.audit.record import Agreed, Confirmed, Expired, Released, Shown
from gateway.callers.persons import Persons
from gateway.case import Case
from gateway.documents import examination_sha256
from gateway.errors import GatewayError, ScanError, Settled
from gateway.reply import Reply
from gateway.settings.review import ReviewConfig
from gateway.store.held import Act, Examination, Held, State
from gateway.store.ledger import Ledger
from gateway.store.quarantine import Quarantine
from gateway.telemetry.metrics import Metrics
from gateway.verdict import Disposition, Verdict

REASON_CHARACTERS_MAX = 500
"""Of a person's reason: it stands in the audit log for good."""
UNSAFE_RELEASE = "review.unsafe_release_failed_signatures"

_SECONDS_A_DAY = 86_400.0
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Person:
    """Who acts, and with what words."""

    name: str
    """`Source.identity` of the caller; `Persons` says which of them are one person."""
    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip() or len(self.reason) > REASON_CHARACTERS_MAX or not self.reason.isprintable():
            raise ScanError(f"a reason is needed: one line of at most {REASON_CHARACTERS_MAX} characters")


class Review:
    """The acts on held scans other than carrying out a release, which is `service.release`; thread-safe."""

    def __init__(
        self,
        settings: ReviewConfig | None,
        *,
        persons: Persons,
        quarantine: Quarantine,
        ledger: Ledger,
        audit: AuditLog,
        metrics: Metrics,
        clock: Callable[[], datetime],
    ) -> None:
        """`settings`: None where the configuration has no [review]: then nothing is released and nothing expires."""
        self._settings = settings
        self._persons = persons
        self._quarantine = quarantine
        self._ledger = ledger
        self._audit = audit
        self._metrics = metrics
        self._clock = clock

    def list(self) -> Iterator[Held]:
        """Everything in quarantine, in order of id; not an act."""
        return self._quarantine.list()

    def show(self, identity: str) -> Held:
        """What is known about one scan, without its bytes; not an act. Raises NotHeld."""
        return self._quarantine.show(identity)

    def read(self, identity: str, by: str) -> Iterator[bytes]:
        """The bytes of a held scan; on record before the first of them is given out. Raises NotHeld."""
        held = self._quarantine.show(identity)
        self._audit.append(Shown(held.id, held.scan_sha256, held.route, by, "")).result()
        self._metrics.acted(Shown.kind)
        return self._quarantine.read(identity)

    def confirm(self, identity: str, person: Person) -> Held:
        """Say that a held scan stays out; repeated, it changes nothing.

        Raises:
            NotHeld: there is none of that id.
            Settled: it was released.
            Overloaded: somebody else is deciding about it now, or the disk fails.
        """
        with self._quarantine.turn(identity) as held:
            if held.state is State.CONFIRMED:
                return held
            if held.state is State.RELEASED:
                raise Settled("the scan was released: that cannot be taken back")
            record = Confirmed(held.id, held.scan_sha256, held.route, person.name, person.reason)
            self._audit.append(record).result()
            self._metrics.acted(Confirmed.kind)
            return self._quarantine.decide(held, State.CONFIRMED, (self._act(person),))

    # -- what `service.release` asks --

    @contextmanager
    def turn(self, identity: str) -> Iterator[Held]:
        """The scan, while nobody else may decide about it; see `Quarantine.turn`."""
        with self._quarantine.turn(identity) as held:
            if self._settings is None:
                raise Settled("the configuration has no [review], so nothing is released")
            if held.state is State.CONFIRMED:
                raise Settled("the scan was confirmed to stay out: it is not released")
            yield held

    def permit(self, *, signature_holds: bool) -> tuple[str, ...]:
        """The unsafe settings that a release needs; raises Settled where the configuration does not have them."""
        if signature_holds:
            return ()
        if self._settings is None or not self._settings.unsafe_release_failed_signatures:
            raise Settled(f"the scan's signature does not hold; {UNSAFE_RELEASE} would be needed")
        return (UNSAFE_RELEASE,)

    def consent(self, held: Held, person: Person, case: Case, unsafe: tuple[str, ...]) -> tuple[Held, Verdict | None]:
        """Record that a person lets the scan go; gives the verdict once all who must agree did.

        A scan that is released already keeps those who released it: only its answer is missing.

        Raises:
            Settled: the same person agreed already, and another is needed; or nobody knows who the caller is.
        """
        acts = held.acts
        if held.state is State.HELD:
            who = self._persons.who(person.name)
            acts = tuple(act for act in acts if self._persons.knows(act.by))  # else it may be the same one
            if any(self._persons.who(act.by) == who for act in acts):
                raise Settled("you agreed to this release already; now another reviewer must")
            acts = (*acts, self._act(person))
            if self._settings is not None and self._settings.four_eyes and len(acts) < 2:
                record = Agreed(held.id, held.scan_sha256, held.route, person.name, person.reason)
                self._audit.append(record).result()
                self._metrics.acted(Agreed.kind)
                return self._quarantine.decide(held, State.HELD, acts), None
        verdict = Verdict(Disposition.ADMIT, (), unsafe, released_by=tuple(act.by for act in acts))
        self._audit.append(_released(held, person, case, verdict)).result()
        if held.state is State.HELD:
            held = self._quarantine.decide(held, State.RELEASED, acts)
            self._metrics.acted(Released.kind, unsafe)
        return held, verdict

    def settle(self, held: Held, case: Case, reply: Reply) -> Held:
        """Keep the answer to a released scan, and give it to those it was released for when they send it again."""
        held = self._quarantine.decide(held, State.RELEASED, held.acts, reply, Examination.of(case, reply.verdict))
        self._publish(held)
        return held

    # -- time --

    def expire(self) -> int:
        """Remove what has been in quarantine for too long; returns how much.

        What was decided about has done its duty. What nobody decided about is a scan that its sender may not have
        any more, so it goes only where the configuration says so by an `unsafe_…` name; its bytes are then taken for
        new if they come again.
        """
        if self._settings is None:
            return 0
        now, days = self._clock().timestamp(), self._settings.unsafe_undecided_days_max
        decided = now - self._settings.decided_days_max * _SECONDS_A_DAY
        overdue = self._quarantine.ids(State.RELEASED, State.CONFIRMED, before=decided)
        if days is not None:
            overdue += self._quarantine.ids(State.HELD, before=now - days * _SECONDS_A_DAY)
        return sum(self._expire_one(identity) for identity in overdue)

    def _expire_one(self, identity: str) -> bool:
        try:
            with self._quarantine.turn(identity) as held:
                if held.state is State.RELEASED and held.reply is None:
                    return False  # its model has not answered: whoever released it still waits
                since = held.since if held.state is State.HELD else held.acts[-1].at
                record = Expired(held.id, held.scan_sha256, held.route, str(held.state), since)
                self._audit.append(record).result()
                self._publish(held)  # a scan that is forgotten here and comes again is examined, and held, anew
                if not self._quarantine.remove(held):
                    return False
        except GatewayError as error:  # the next round tries again
            _log.warning("expiry_failed", quarantine_id=identity, error=type(error).__name__)
            return False
        self._metrics.acted("given_up" if held.state is State.HELD else Expired.kind)
        return True

    def resume(self) -> None:
        """After a start, have the ledger answer as every release did: a crash may have come between."""
        for identity in self._quarantine.ids(State.RELEASED):
            try:
                held = self._quarantine.show(identity)
                if held.reply is not None:
                    self._publish(held)
            except GatewayError as error:
                _log.error("release_not_published", quarantine_id=identity, error=type(error).__name__)

    def _publish(self, held: Held) -> None:
        """Have the ledger answer as the release did, or, where there is no answer, take the scan for a new one."""
        for examination in held.examinations:
            self._ledger.revise(examination.question, held.reply)

    def _act(self, person: Person) -> Act:
        return Act(person.name, person.reason, self._clock().astimezone(UTC).isoformat())


def _released(held: Held, person: Person, case: Case, verdict: Verdict) -> Released:
    return Released(
        held.id,
        held.scan_sha256,
        held.route,
        person.name,
        person.reason,
        released_by=verdict.released_by,
        unsafe=verdict.unsafe,
        examination_sha256=examination_sha256(case.findings, verdict),
        digests=asdict(case.digests),
    )
