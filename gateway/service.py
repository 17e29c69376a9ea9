"""The product: one numbered function, which every door calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

import structlog

from gateway.audit.log import AuditLog
from gateway.audit.record import Alarmed, Answered, Decided, Failed, Refused
from gateway.case import Case, Digests
from gateway.deadline import Deadline
from gateway.errors import GatewayError, ScanError, UpstreamError
from gateway.metrics import Metrics
from gateway.pipeline import Pipeline
from gateway.policy import ServicePolicy
from gateway.profile import Profile
from gateway.queries import QueryWatch
from gateway.receipt import Notary
from gateway.reply import Consequence, Reply
from gateway.scan import Scan
from gateway.store.ledger import Ledger
from gateway.store.quarantine import Quarantine
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

    def pipeline_for(self, scan: Scan) -> Pipeline:
        """The pipeline for objects or for bare tensors; raises ScanError where the route takes no tensors."""
        if scan.tensor is None:
            return self.pipeline
        if self.tensors is None:
            raise ScanError("this route takes no bare tensors: it has no model")
        return self.tensors


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
        self._clock = clock

    def protect(self, scan: Scan, deadline: Deadline) -> Reply:
        """Examine one scan, admit it or not, and leave a signed record.

        Raises:
            ScanError: there is no such route, or it takes no bare tensors.
            Overloaded: its sender has sent too much, or too much that was held.
            UpstreamError: the scan was admitted, but the protected model did not answer.
            AuditError: a record could not be made durable; nothing was answered.
        """
        started = time.perf_counter()
        route = self.route(scan.route)
        pipeline = route.pipeline_for(scan)
        self._throttle.scan(scan.source, len(scan.data))
        with self._ledger.turn(scan, route.digests, deadline) as turn:
            if (earlier := turn.earlier) is not None:  # (0) same bytes, same answer
                return earlier
            case = pipeline.run(Case(scan, self._clock(), route.digests), deadline)  # (1) examine
            verdict = route.policy.decide(case.findings)  # (2) decide
            self._audit.append(Decided.of(case, verdict)).result()  # (3) record: durable before anything leaves
            self._notice(case, verdict)
            consequence = self._carry_out(route, case, verdict, deadline)  # (4) ask the model, hold, or refuse
            receipt = self._notary.issue(case, verdict, consequence)  # (5) sign
            place = self._audit.append(Answered.of(case, receipt)).result()  # (6) record
            reply = Reply(scan.sha256, verdict, consequence.prediction, receipt, place, case.findings)
            turn.settle(reply)
        self._metrics.answered(scan.receiver, scan.modality, verdict, time.perf_counter() - started)
        return reply  # (7) answer

    def refuse(self, error: GatewayError, *, receiver: str, source: str) -> int:
        """Record a call that could not become a scan (too large, cut off, no such route); returns its place."""
        return self._audit.append(Refused.of(error, receiver=receiver, source=source)).result()

    def route(self, name: str) -> Route:
        """The route of that name; raises ScanError where there is none."""
        try:
            return self._routes[name]
        except KeyError:
            raise ScanError("there is no such route") from None

    def _notice(self, case: Case, verdict: Verdict) -> None:
        """Count what was held against its sender, and raise an alarm where it looks like an attack by questions."""
        source, held = case.scan.source, verdict.disposition is Disposition.QUARANTINE
        if held:
            self._throttle.held(source)
        if case.image is None:
            return
        if (alarm := self._queries.saw(source.identity, case.scan.sha256, case.image, held=held)) is not None:
            self._audit.append(Alarmed.of(case, alarm)).result()
            self._metrics.query_alarm(source.name)
            _log.error("query_attack", source=source.identity, scan_sha256=alarm.held_sha256, count=alarm.count)

    def _carry_out(self, route: Route, case: Case, verdict: Verdict, deadline: Deadline) -> Consequence:
        if verdict.disposition is Disposition.QUARANTINE:
            return Consequence(quarantine_id=self._quarantine.hold(case, verdict))
        if not verdict.disposition.admitted or route.upstream is None:
            return Consequence()
        try:
            return Consequence(prediction=route.upstream.predict(case, verdict, deadline))
        except UpstreamError as error:
            self._audit.append(Failed.of(case, error)).result()
            raise
