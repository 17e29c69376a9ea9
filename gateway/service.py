"""The product: one numbered function, which every door calls."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime

import structlog

from gateway.audit.log import AuditLog
from gateway.audit.record import Alarmed, Answered, Decided, Drifted, Failed, Refused, StudyDecided
from gateway.case import Case, Digests
from gateway.deadline import Deadline
from gateway.errors import GatewayError, ScanError, UpstreamError
from gateway.metrics import Metrics
from gateway.pipeline import Pipeline
from gateway.policy import MONITOR, Context, ServicePolicy
from gateway.profile import Profile
from gateway.queries import QueryWatch
from gateway.receipt import Notary
from gateway.reply import Consequence, Reply
from gateway.routing import Routing
from gateway.scan import Scan, Source
from gateway.store.drift import Observe
from gateway.store.ledger import Ledger
from gateway.store.quarantine import Quarantine
from gateway.study import Judged, Study, StudyReply, together
from gateway.throttle import Throttle
from gateway.upstreams.upstream import Upstream
from gateway.verdict import Disposition, Verdict

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
    p_value_min: float | None = None
    """The smallest p-value that the detectors' calibration can give; None without a model."""

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
        notary: Notary,
        metrics: Metrics,
        throttle: Throttle,
        queries: QueryWatch,
        routing: Routing,
        clock: Callable[[], datetime],
    ) -> None:
        self._routes = routes
        self._ledger = ledger
        self._audit = audit
        self._quarantine = quarantine
        self._notary = notary
        self._metrics = metrics
        self._throttle = throttle
        self._queries = queries
        self._routing = routing
        self._clock = clock

    @property
    def audit(self) -> AuditLog:
        """The log, for the door through which it is read."""
        return self._audit

    def protect(self, scan: Scan, deadline: Deadline, *, study_held: int = 0) -> Reply:
        """Examine one scan, admit it or not, and leave a signed record.

        `study_held`: how many earlier instances were held or refused, where the scan's study is sent as a whole.

        Raises:
            ScanError: there is no such route, or it takes no bare tensors.
            Overloaded: its sender has sent too much, or too much that was held.
            UpstreamError: the scan was admitted, but the protected model did not answer.
            AuditError: a record could not be made durable; nothing was answered.
        """
        started = time.perf_counter()
        route = self._route_at(scan.route, scan.source)
        pipeline = route.pipeline_for(scan)
        if not scan.acknowledged:  # or its door has seen to that, before it promised anything
            self._throttle.scan(scan.source, len(scan.data))
        with self._ledger.turn(scan, route.digests, deadline) as turn:
            if (earlier := turn.earlier) is not None:  # (0) same bytes, same answer
                return earlier
            case = Case(scan, self._clock(), route.digests, study_held=study_held)
            case = pipeline.run(case, deadline)  # (1) examine
            verdict = route.policy.decide(case.findings, Context.of(case))  # (2) decide
            self._audit.append(Decided.of(case, verdict)).result()  # (3) record: durable before anything leaves
            self._notice(case, verdict)
            consequence = self._carry_out(route, case, verdict, deadline)  # (4) ask the model, hold, or refuse
            receipt = self._notary.issue(case, verdict, consequence, self._guarantee(route, case))  # (5) sign
            place = self._audit.append(Answered.of(case, receipt)).result()  # (6) record
            reply = Reply(scan.sha256, verdict, consequence.prediction, receipt, place, case.findings)
            turn.settle(reply)
        self._metrics.answered(scan.receiver, scan.modality, verdict, time.perf_counter() - started)
        return reply  # (7) answer

    def route_by_rule(self, scan: Scan) -> str:
        """Name of the route for a scan whose sender named none; raises ScanError where no rule takes it."""
        return self._routing.route_of(scan)

    def begin_study(self, route: str, receiver: str, source: Source) -> Study:
        """A study that is about to be sent as a whole; raises `ScanError` where the route takes none."""
        judged_by = self._route_at(route, source)
        if judged_by.p_value_min is not None and judged_by.policy.settings.study is None:
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
        slices, p_value = together(replies, route.p_value_min or 0.0)  # (1) take the slices together
        verdict = route.policy.decide_study([reply.verdict for reply in replies], p_value)  # (2) decide
        settings = route.policy.settings.study
        rate = None if settings is None else settings.false_discovery_rate
        judged = Judged(
            study.digest, study.route, study.receiver, study.source, slices, p_value, rate, verdict, route.digests
        )
        receipt = self._notary.issue_study(judged)  # (3) sign
        place = self._audit.append(StudyDecided.of(judged, receipt)).result()  # (4) record
        self._metrics.study_answered(study.receiver, verdict)
        return StudyReply(judged, receipt, place)  # (5) answer

    def refuse(self, error: GatewayError, *, receiver: str, source: str) -> int:
        """Record a call that could not become a scan (too large, cut off, no such route); returns its place."""
        return self._audit.append(Refused.of(error, receiver=receiver, source=source)).result()

    def route(self, name: str) -> Route:
        """The route of that name; raises ScanError where there is none."""
        try:
            return self._routes[name]
        except KeyError:
            raise ScanError("there is no such route") from None

    def _route_at(self, name: str, source: Source) -> Route:
        return self.route(name).at(source.name, self._clock())

    def _notice(self, case: Case, verdict: Verdict) -> None:
        """Count what was held against its sender, and raise an alarm where it looks like an attack by questions."""
        source, meant = case.scan.source, verdict.meant.disposition is Disposition.QUARANTINE
        if verdict.disposition is Disposition.QUARANTINE:
            self._throttle.held(source)
        if case.image is None:
            return
        if (alarm := self._queries.saw(source.identity, case.scan.sha256, case.image, held=meant)) is not None:
            self._audit.append(Alarmed.of(case, alarm)).result()
            self._metrics.query_alarm(source.name)
            _log.error("query_attack", source=source.identity, scan_sha256=alarm.held_sha256, count=alarm.count)

    def _guarantee(self, route: Route, case: Case) -> str | None:
        """What the detectors' promise is worth for this source; drift that comes to light is recorded first."""
        if route.drift is None:
            return None
        standing = route.drift(case)
        for drift in standing.drifts:
            self._audit.append(Drifted.of(case, drift)).result()
        return standing.guarantee

    def _carry_out(self, route: Route, case: Case, verdict: Verdict, deadline: Deadline) -> Consequence:
        refused_too_late = verdict.disposition is Disposition.REJECT and case.scan.acknowledged
        if verdict.disposition is Disposition.QUARANTINE or refused_too_late:
            return Consequence(quarantine_id=self._quarantine.hold(case, verdict))
        if not verdict.disposition.admitted or route.upstream is None:
            return Consequence()
        try:
            return Consequence(prediction=route.upstream.predict(case, verdict, deadline))
        except UpstreamError as error:
            self._audit.append(Failed.of(case, error)).result()
            raise
