"""The product: `protect`, which every door calls, and `release`, which lets go what it held."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime

import structlog

from gateway.audit.log import AuditLog
from gateway.audit.record import Alarmed, Answered, Decided, Drifted, Failed, Record, Refused, StudyDecided
from gateway.callers.queries import QueryWatch
from gateway.callers.throttle import Throttle
from gateway.case import Case, Digests
from gateway.deadline import Deadline
from gateway.errors import GatewayError, Overloaded, ScanError, Settled, Unkept, UpstreamError
from gateway.finding import GatewayReason, Outcome
from gateway.heat_maps import HeatMaps
from gateway.pipeline import Pipeline
from gateway.policy import MONITOR, SIGNATURE, UNSIGNED, Context, ServicePolicy
from gateway.profile import Profile
from gateway.receipt import Notary
from gateway.reply import Consequence, Receipt, Reply
from gateway.review import Person, Review
from gateway.routing import Routing
from gateway.scan import Scan, Source
from gateway.store.drift import Observe
from gateway.store.held import Held, scan_of
from gateway.store.ledger import Ledger
from gateway.store.quarantine import Quarantine
from gateway.study.study import Judged, Study, StudyReply, together
from gateway.telemetry import traces
from gateway.telemetry.metrics import Metrics
from gateway.upstreams.upstream import Upstream
from gateway.verdict import Disposition, Verdict
from signing import DicomError, VerifiedView

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """What a scan sent to one name is examined by, judged by and forwarded to."""

    name: str
    pipeline: Pipeline
    policy: ServicePolicy
    upstream: Upstream | None
    digests: Digests
    profile: Profile | None = None
    """What the route's model takes and gives; None where it has no model."""
    tensors: Pipeline | None = None
    """Examines a model's input that came bare; None where the route takes none."""
    drift: Observe | None = None
    """Where detectors examine: whether the source still sends what they were calibrated on."""
    monitored: Mapping[str, date] = field(default_factory=dict)
    """Sources in monitor mode, each until its day begins (UTC)."""

    def pipeline_for(self, scan: Scan) -> Pipeline:
        """The pipeline for objects or for bare tensors; raises ScanError where the route takes no tensors."""
        if scan.tensor is None:
            return self.pipeline
        if self.tensors is None:
            raise ScanError("this route takes no bare tensors: it has no model")
        return self.tensors

    def at(self, source: str, now: datetime) -> Route:
        """The route as it is for a source now: monitor mode is another policy, and so another answer to a scan."""
        until = self.monitored.get(source)
        if until is None or now.astimezone(UTC).date() >= until:
            return self
        digest = hashlib.sha256(f"{MONITOR}/{self.digests.policy}".encode()).hexdigest()
        return replace(
            self, policy=replace(self.policy, monitor=True), digests=replace(self.digests, policy=digest), monitored={}
        )


class ProtectionService:
    """Examines scans and answers them; thread-safe, one for all doors."""

    def __init__(
        self,
        routes: Mapping[str, Route],
        *,
        ledger: Ledger,
        audit: AuditLog,
        quarantine: Quarantine,
        review: Review,
        notary: Notary,
        metrics: Metrics,
        throttle: Throttle,
        queries: QueryWatch,
        routing: Routing,
        clock: Callable[[], datetime],
        heat_maps: HeatMaps | None = None,
    ) -> None:
        """`heat_maps`: None where there are no detectors."""
        self._routes = routes
        self._ledger = ledger
        self._audit = audit
        self._quarantine = quarantine
        self._review = review
        self._notary = notary
        self._metrics = metrics
        self._throttle = throttle
        self._queries = queries
        self._routing = routing
        self._clock = clock
        self._heat_maps = heat_maps

    @property
    def audit(self) -> AuditLog:
        """The log, for the door through which it is read."""
        return self._audit

    @traces.spanned("protect")
    def protect(self, scan: Scan, deadline: Deadline, *, study_held: int = 0) -> Reply:
        """Examine one scan, admit it or not, and leave a signed record.

        `study_held`: how many earlier instances were held or refused, where the scan's study is sent as a whole.

        Raises:
            ScanError: there is no such route, or it takes no bare tensors.
            Overloaded: its sender has sent too much, or too much that was held.
            UpstreamError: the scan was admitted, but the protected model did not answer.
            Unkept: the scan was to be held, or kept until it can be handed on, and there was no room for it.
            AuditError: a record could not be made durable; nothing was answered.
        """
        started = time.perf_counter()
        route = self._route_at(scan.route, scan.source)
        traces.note(route=route.name, receiver=scan.receiver, source=scan.source.identity, scan_sha256=scan.sha256)
        pipeline = route.pipeline_for(scan)
        if not scan.acknowledged:  # or its door has seen to that, before it promised anything
            self._throttle.scan(scan.source, len(scan.data))
        with self._ledger.turn(scan, route.digests, deadline, stands=self._stands) as turn:
            if (earlier := turn.earlier) is not None:  # (0) same bytes, same answer
                return earlier
            case = Case(scan, self._clock(), route.digests, study_held=study_held)
            case = pipeline.run(case, deadline)  # (1) examine
            verdict = route.policy.decide(case.findings, Context.of(case))  # (2) decide
            self._record(Decided.of(case, verdict))  # (3) record: durable before anything leaves
            traces.note(disposition=verdict.disposition.label)
            self._notice(case, verdict)
            consequence = self._carry_out(route, case, verdict, deadline)  # (4) ask the model, hold, or refuse
            receipt = self._notary.issue(case, verdict, consequence, self._guarantee(route, case))  # (5) sign
            place = self._record(Answered.of(case, receipt))  # (6) record
            reply = _reply(case, verdict, consequence, receipt, place)
            turn.settle(reply)
        self._metrics.answered(scan.receiver, scan.modality, verdict, time.perf_counter() - started)
        return reply  # (7) answer

    def release(self, identity: str, person: Person, deadline: Deadline) -> Held:
        """Let a held scan go on to its model because people answer for it, and leave a signed record.

        Where another person must agree, the scan comes back held, with the first one's agreement.

        Raises:
            NotHeld: there is none of that id.
            Settled: it was confirmed to stay out, or the configuration does not allow its release.
            Overloaded: somebody else is deciding about it now.
            UpstreamError: it is released, but the model did not answer; the same call asks again.
            AuditError: a record could not be made durable; nothing was answered.
        """
        with self._review.turn(identity) as before:
            if before.reply is not None:  # (0) released before: the same answer
                return before
            route = self._route_at(before.route, before.source)
            case, unsafe = self._examined_anew(route, before, deadline)  # (1) examine: what is known of it now?
            held, verdict = self._review.consent(before, person, case, unsafe)  # (2) decide, and record: durable first
            if verdict is None:
                return held
            consequence = replace(self._carry_out(route, case, verdict, deadline), quarantine_id=identity)  # (3) ask
            receipt = self._notary.issue(case, verdict, consequence)  # (4) sign
            place = self._record(Answered.of(case, receipt))  # (5) record
            return self._review.settle(held, case, _reply(case, verdict, consequence, receipt, place))  # (6) answer

    @property
    def review(self) -> Review:
        """What people may do with held scans besides."""
        return self._review

    @property
    def heat_maps(self) -> HeatMaps:
        """Pictures of held scans; raises Settled where there are no detectors to draw them."""
        if self._heat_maps is None:
            raise Settled("there are no heat maps: this gateway has no detectors")
        return self._heat_maps

    def route_by_rule(self, scan: Scan) -> str:
        """Name of the route for a scan whose sender named none; raises ScanError where no rule takes it."""
        return self._routing.route_of(scan)

    def begin_study(self, route: str, receiver: str, source: Source) -> Study:
        """A study that is about to be sent as a whole; raises `ScanError` where the route takes none."""
        judged_by = self._route_at(route, source)
        if judged_by.profile is not None and judged_by.policy.settings.study is None:
            raise ScanError("this route takes no whole studies: its policy has no word for them")
        return Study(route, receiver, source)

    def conclude(self, study: Study) -> StudyReply:
        """Judge a study by all of its instances, each of which was answered, and leave a signed record.

        Raises:
            ScanError: no instance came.
            AuditError: the record could not be made durable; nothing was answered.
        """
        replies = study.replies()
        if not replies:
            raise ScanError("a study has at least one instance")
        route = self._route_at(study.route, study.source)
        slices, p_value = together(replies)  # (1) take the slices together
        verdict = route.policy.decide_study([reply.verdict for reply in replies], p_value)  # (2) decide
        settings = route.policy.settings.study
        rate = None if settings is None else settings.false_discovery_rate
        judged = Judged(
            study.digest, study.route, study.receiver, study.source, slices, p_value, rate, verdict, route.digests
        )
        receipt = self._notary.issue_study(judged)  # (3) sign
        place = self._record(StudyDecided.of(judged, receipt))  # (4) record
        self._metrics.study_answered(study.receiver, verdict)
        return StudyReply(judged, receipt, place)  # (5) answer

    def refuse(self, error: GatewayError, *, receiver: str, source: str) -> int:
        """Record a call that could not become a scan (too large, cut off, no such route); returns its place."""
        return self._record(Refused.of(error, receiver=receiver, source=source))

    def route(self, name: str) -> Route:
        """The route of that name; raises ScanError where there is none."""
        try:
            return self._routes[name]
        except KeyError:
            raise ScanError("there is no such route") from None

    def _record(self, record: Record) -> int:
        """Append to the audit log; durable on return. Returns its place."""
        with traces.span("audit append", record=record.kind):
            return self._audit.append(record).result()

    def _stands(self, reply: Reply) -> bool:
        """Whether an earlier answer is still true: nobody may be told that a scan is held which is not there."""
        held_as = None if reply.verdict.disposition.admitted else reply.quarantine_id
        return held_as is None or self._quarantine.has(held_as)

    def _route_at(self, name: str, source: Source) -> Route:
        return self.route(name).at(source.name, self._clock())

    def _notice(self, case: Case, verdict: Verdict) -> None:
        """Count what was held against its sender, and raise an alarm where it looks like an attack by questions.

        To whoever asks the questions a refusal tells as much as a hold.
        """
        source, kept_out = case.scan.source, not verdict.meant.disposition.admitted
        if _is_kept(case, verdict):
            self._throttle.held(source)
        if case.image is None:
            return
        if (alarm := self._queries.saw(source.identity, case.scan.sha256, case.image, held=kept_out)) is not None:
            self._record(Alarmed.of(case, alarm))
            self._metrics.query_alarm(source.name)
            _log.error("query_attack", source=source.identity, scan_sha256=alarm.held_sha256, count=alarm.count)

    def _guarantee(self, route: Route, case: Case) -> str | None:
        """What the detectors' promise is worth for this source; drift that comes to light is recorded first."""
        if route.drift is None:
            return None
        standing = route.drift(case)
        for drift in standing.drifts:
            self._record(Drifted.of(case, drift))
        return standing.guarantee

    def _examined_anew(self, route: Route, held: Held, deadline: Deadline) -> tuple[Case, tuple[str, ...]]:
        """The case of a held scan by the trust, the model and the time of now, and the unsafe settings it needs.

        A scan whose signature does not hold leaves no view to render; it has one where the configuration lets it go.
        """
        scan = scan_of(held, b"".join(self._quarantine.read(held.id)))
        pipeline, blank = route.pipeline_for(scan), Case(scan, self._clock(), route.digests)
        case = pipeline.run(blank, deadline)
        unsafe = self._review.permit(signature_holds=_signature_holds(case, held))
        if unsafe and scan.elements is not None:
            try:
                blank = replace(blank, view=VerifiedView.of_unsigned(scan.elements))
            except DicomError as error:
                raise Settled(f"the scan cannot be shown to a model: {error.reason}") from None
            case = pipeline.run(blank, deadline)
        if route.upstream is not None and route.upstream.needs_image and not case.has("image"):
            why = next((finding.reason for finding in case.findings if finding.outcome is not Outcome.PASSED), "")
            raise Settled(f"the scan cannot be shown to a model: {why}")
        return case, unsafe

    def _carry_out(self, route: Route, case: Case, verdict: Verdict, deadline: Deadline) -> Consequence:
        if _is_kept(case, verdict):
            try:
                identity = self._quarantine.hold(case, verdict)
            except Overloaded as error:
                self._record(Failed.of(case, error))
                raise Unkept(str(error), retry_after_s=error.retry_after_s) from None
            if self._heat_maps is not None and GatewayReason.SUSPECT in verdict.reasons:
                self._heat_maps.want(identity)
            return Consequence(quarantine_id=identity)
        if not verdict.disposition.admitted or route.upstream is None:
            return Consequence()
        if verdict.instead_of is not None and route.upstream.needs_image and case.image is None:
            return Consequence()  # monitor mode let it by, and there is nothing that the model could be shown
        try:
            with traces.span("model", upstream=route.upstream.name):
                return Consequence(prediction=route.upstream.predict(case, verdict, deadline))
        except UpstreamError as error:
            self._record(Failed.of(case, error))
            raise
        except Overloaded as error:
            self._record(Failed.of(case, error))
            raise Unkept(str(error), retry_after_s=error.retry_after_s) from None


def _is_kept(case: Case, verdict: Verdict) -> bool:
    """Whether it goes into quarantine: held, or refused after its sender was told that it is stored."""
    refused_too_late = verdict.disposition is Disposition.REJECT and case.scan.acknowledged
    return verdict.disposition is Disposition.QUARANTINE or refused_too_late


def _signature_holds(case: Case, held: Held) -> bool:
    """Whether it was verified, or there is none that could fail.

    What came unsigned from a source that signs all it sends was stripped, whoever sends the same bytes after.
    """
    found = [finding for finding in case.findings if finding.stage == SIGNATURE]
    may_lack = frozenset() if any(each.source.enrolled for each in held.examinations) else UNSIGNED
    return bool(found) and all(each.outcome is Outcome.PASSED or each.reason in may_lack for each in found)


def _reply(case: Case, verdict: Verdict, consequence: Consequence, receipt: Receipt, place: int) -> Reply:
    prediction, identity = consequence.prediction, consequence.quarantine_id
    return Reply(case.scan.sha256, verdict, prediction, receipt, place, case.findings, identity)
