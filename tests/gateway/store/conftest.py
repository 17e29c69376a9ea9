"""A whole service with a quarantine and reviewers, real but for the stages and the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.export import lines
from gateway.audit.log import AuditLog
from gateway.audit.sqlite import SqliteReader, SqliteSink
from gateway.callers.persons import Persons
from gateway.callers.queries import QueryWatch
from gateway.callers.throttle import Throttle
from gateway.case import Case, Image
from gateway.deadline import Deadline
from gateway.errors import AuditError, UpstreamError
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.pipeline import Pipeline
from gateway.policy import ServicePolicy
from gateway.receipt import Notary
from gateway.reply import Prediction, Reply
from gateway.review import Person, Review
from gateway.routing import Routing
from gateway.service import ProtectionService, Route
from gateway.settings.coherence import DEFAULT
from gateway.settings.policy import DetectionPolicy, PolicyConfig, SignaturePolicy
from gateway.settings.review import ReviewConfig
from gateway.store.held import Held
from gateway.store.kek import RawKek
from gateway.store.ledger import Ledger
from gateway.store.quarantine import Quarantine
from gateway.telemetry.metrics import Metrics
from gateway.testing import WIDE_LIMITS
from gateway.verdict import Disposition, Verdict
from signing import Reason

RECEIPT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")
PREDICTION = Prediction("ct", "1", ("clear", "nodule"), (0.25, 0.75))
POLICY = PolicyConfig(
    indeterminate="quarantine",
    unexaminable="quarantine",
    signature=SignaturePolicy(failed="quarantine", unsigned="quarantine", stripped="quarantine"),
    detection=DetectionPolicy(false_positive_rate=0.01, suspect="quarantine", denoise="never"),
)
ONE = ReviewConfig(four_eyes=False, decided_days_max=30.0)
ANN = Person("ann", "an artefact of the table")


@dataclass
class FirstByte:
    """A stage that finds what the scan's first byte says, and leaves an image unless the signature fails."""

    name: str = "signature"
    requires: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset({"image"})

    def run(self, case: Case, deadline: Deadline) -> Case:
        stripped = case.scan.source.enrolled
        finding = {
            b"a": Finding(self.name, Outcome.PASSED, Reason.OK),
            b"u": Finding(self.name, Outcome.FAILED, Reason.STRIPPED if stripped else Reason.UNSIGNED),
            b"r": Finding(self.name, Outcome.FAILED, Reason.MAC_MISMATCH),
            b"i": Finding(self.name, Outcome.INDETERMINATE, Reason.REVOCATION_UNKNOWN),
        }[bytes(case.scan.data[:1])]
        if finding.outcome is not Outcome.PASSED and finding.reason is not Reason.UNSIGNED:
            return case.with_finding(finding)
        return case.with_finding(finding, image=Image(np.zeros((1, 1, 2, 2), np.float32), "ct"))


@dataclass
class Suspicious:
    """A stage that suspects every scan."""

    name: str = "detection"
    requires: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()

    def run(self, case: Case, deadline: Deadline) -> Case:
        return case.with_finding(Finding(self.name, Outcome.FAILED, GatewayReason.SUSPECT, p_value=0.001))


@dataclass
class Model:
    """An upstream that looks into the log at the moment it is asked."""

    log: Path
    name: str = "ct"
    needs_image: bool = True
    seen: list[list[str]] = field(default_factory=list)
    fails: bool = False
    meanwhile: Callable[[], object] = lambda: None
    """What happens while it works."""

    def predict(self, case: Case, verdict: Verdict, deadline: Deadline) -> Prediction:
        assert verdict.disposition is Disposition.ADMIT
        self.seen.append(_kinds(self.log))
        if self.fails:
            raise UpstreamError("the model did not answer")
        self.meanwhile()
        return PREDICTION


class Sink(SqliteSink):
    """The real sink, which can be told to fail from the n-th commit on."""

    commits_left: float = float("inf")

    def turn(self):
        if self.commits_left <= 0:
            raise AuditError("the audit log cannot be written: OSError")
        self.commits_left -= 1
        return super().turn()


@dataclass
class House:
    """A whole service, real but for the stages and the model; its clock is told the time."""

    root: Path
    make_scan: Callable
    digests: Any
    key: Ed25519PrivateKey
    now: datetime = datetime(2026, 5, 4, tzinfo=UTC)
    service: ProtectionService = None  # type: ignore[assignment]
    persons: Persons = field(default_factory=Persons)

    def open(self, settings: ReviewConfig | None = ONE) -> House:
        """Start, or start again with other settings."""
        self.metrics, self.log = Metrics(clock=self._seconds), self.root / "audit.db"
        self.sink, self.model = Sink(self.log), Model(self.log)
        checkpoint = self.root / "checkpoint.json"
        self.audit = AuditLog(self.sink, self.key, metrics=self.metrics, checkpoint_file=checkpoint)
        self.ledger = Ledger(self.root / "ledger.db", rows_max=1000, age_s_max=1e9, clock=self._seconds)
        self.quarantine = Quarantine(
            self.root / "q", RawKek(bytes(32)), name_key=bytes(32), bytes_max=1 << 20, metrics=self.metrics
        )
        self.serve(settings)
        return self

    def serve(self, settings: ReviewConfig | None, digests: Any = None) -> None:
        """Serve by other settings, as after a reload."""
        stores = {"quarantine": self.quarantine, "ledger": self.ledger, "audit": self.audit, "metrics": self.metrics}
        self.review = Review(settings, persons=self.persons, **stores, clock=lambda: self.now)
        pipeline = Pipeline([FirstByte(), Suspicious()], self.metrics)
        upstreams = {"ct": self.model, "archive": None}
        routes = {
            name: Route(name, pipeline, ServicePolicy(POLICY), upstream, digests or self.digests)
            for name, upstream in upstreams.items()
        }
        self.service = ProtectionService(
            routes,
            **stores,
            review=self.review,
            notary=Notary(RECEIPT_KEY),
            throttle=Throttle({DEFAULT: WIDE_LIMITS}, threads=8),
            queries=QueryWatch(),
            routing=Routing(()),
            clock=lambda: self.now,
        )

    def _seconds(self) -> float:
        return self.now.timestamp()

    def close(self) -> None:
        self.audit.close()
        self.ledger.close()
        self.quarantine.close()

    def reopen(self, settings: ReviewConfig | None = ONE) -> None:
        self.close()
        self.open(settings)
        self.review.resume()

    def protect(self, data: bytes = b"a scan", **options) -> Reply:
        return self.service.protect(self.make_scan(data, **options), Deadline.after(30.0))

    def hold(self, data: bytes = b"a scan", **options) -> str:
        reply = self.protect(data, **options)
        assert reply.verdict.disposition is Disposition.QUARANTINE
        assert reply.quarantine_id is not None
        return reply.quarantine_id

    def release(self, identity: str, person: Person = ANN) -> Held:
        return self.service.release(identity, person, Deadline.after(30.0))

    def records(self) -> list[dict]:
        """What stands in the log."""
        return _records(self.log)

    def kinds(self) -> list[str]:
        return _kinds(self.log)

    def value(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


@pytest.fixture
def house(tmp_path: Path, checkpoint_key, make_scan, digests) -> Iterator[House]:
    opened = House(tmp_path, make_scan, digests, checkpoint_key).open()
    yield opened
    opened.close()


def _records(log: Path) -> list[dict]:
    with SqliteReader(log) as reader:
        return [line["record"] for line in lines(reader)]


def _kinds(log: Path) -> list[str]:
    return [record["kind"] for record in _records(log)]
