"""Nothing leaves before it is recorded, nothing is answered that is not on disk, and nobody is answered twice."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway import documents
from gateway.audit.export import lines
from gateway.audit.log import AuditLog
from gateway.audit.sqlite import SqliteReader, SqliteSink
from gateway.audit.verify import verify
from gateway.callers.persons import Persons
from gateway.callers.queries import QueryWatch
from gateway.callers.throttle import Throttle
from gateway.case import Case
from gateway.deadline import Deadline
from gateway.errors import AuditError, GatewayError, Overloaded, ScanError, Unkept, UpstreamError
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.pipeline import Pipeline
from gateway.policy import DETECTION, ServicePolicy
from gateway.receipt import Notary, verify_receipt
from gateway.reply import Prediction, Receipt, Reply
from gateway.review import Review
from gateway.routing import Routing
from gateway.scan import Source
from gateway.service import ProtectionService, Route
from gateway.settings.coherence import DEFAULT
from gateway.settings.policy import DetectionPolicy, PolicyConfig, SignaturePolicy, StudyPolicy
from gateway.store.kek import RawKek
from gateway.store.ledger import Ledger
from gateway.store.quarantine import Quarantine
from gateway.telemetry.metrics import Metrics
from gateway.testing import WIDE_LIMITS
from gateway.verdict import Disposition, Verdict
from signing import Reason
from tiny import PROFILE

RECEIPT_KEY = Ed25519PrivateKey.from_private_bytes(bytes(31) + b"\x01")
PREDICTION = Prediction("ct", "1", ("clear", "nodule"), (0.25, 0.75))
SETTINGS = PolicyConfig(
    indeterminate="quarantine",
    unexaminable="quarantine",
    signature=SignaturePolicy(failed="reject", unsigned="unsafe_admit", stripped="reject"),
    detection=DetectionPolicy(false_positive_rate=0.01, suspect="quarantine", denoise="never"),
)


@dataclass
class FirstByte:
    """A stage that finds what the scan's first byte says, so that a test chooses the disposition by the bytes."""

    name: str = "signature"
    requires: frozenset[str] = frozenset()
    provides: frozenset[str] = frozenset()
    examined: list[str] = field(default_factory=list)

    def run(self, case: Case, deadline: Deadline) -> Case:
        self.examined.append(case.scan.sha256)
        finding = {
            b"a": Finding(self.name, Outcome.PASSED, Reason.OK),
            b"u": Finding(self.name, Outcome.FAILED, Reason.UNSIGNED),
            b"r": Finding(self.name, Outcome.FAILED, Reason.MAC_MISMATCH),
            b"q": Finding(self.name, Outcome.INDETERMINATE, GatewayReason.NO_PIXEL_DATA),
            b"t": Finding(self.name, Outcome.INDETERMINATE, GatewayReason.TIMEOUT),
        }[bytes(case.scan.data[:1])]
        return case.with_finding(finding)


@dataclass
class Model:
    """An upstream that looks into the log at the moment it is asked."""

    log: Path
    name: str = "ct"
    seen: list[list[str]] = field(default_factory=list)
    fails: GatewayError | None = None
    needs_image: bool = False

    def predict(self, case: Case, verdict: Verdict, deadline: Deadline) -> Prediction:
        self.seen.append(_kinds(self.log))
        if self.fails is not None:
            raise self.fails
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
    """A whole service, real but for the stage and the model."""

    clock: list[datetime]
    """One entry: the time that it is."""
    service: ProtectionService
    stage: FirstByte
    model: Model
    sink: Sink
    audit: AuditLog
    quarantine: Quarantine
    log: Path
    metrics: Metrics
    make_scan: Callable

    def protect(self, data: bytes, **options) -> Reply:
        return self.service.protect(self.make_scan(data, **options), Deadline.after(30.0))


@pytest.fixture
def house(tmp_path: Path, checkpoint_key, make_scan, digests) -> Iterator[House]:
    metrics, log = Metrics(), tmp_path / "audit.db"
    sink = Sink(log)
    audit = AuditLog(sink, checkpoint_key, metrics=metrics, checkpoint_file=tmp_path / "checkpoint.json")
    ledger = Ledger(tmp_path / "ledger.db", rows_max=1000, age_s_max=3600.0)
    quarantine = Quarantine(tmp_path / "q", RawKek(bytes(32)), name_key=bytes(32), bytes_max=1 << 20, metrics=metrics)
    stage, model, clock = FirstByte(), Model(log), [datetime(2026, 5, 4, tzinfo=UTC)]
    pipeline, policy = Pipeline([stage], metrics), ServicePolicy(SETTINGS)
    monitored = {"ct-scanner": date(2026, 5, 5), "over": date(2026, 5, 4)}
    with_studies = ServicePolicy(
        SETTINGS.model_copy(update={"study": StudyPolicy(false_discovery_rate=0.05, suspect="quarantine")})
    )
    stores = {"quarantine": quarantine, "ledger": ledger, "audit": audit, "metrics": metrics}
    review = Review(None, persons=Persons(), **stores, clock=lambda: clock[0])
    service = ProtectionService(
        {
            "ct": Route("ct", pipeline, policy, model, digests),
            "monitored": Route("monitored", pipeline, policy, model, digests, monitored=monitored),
            "modelled": Route("modelled", pipeline, with_studies, model, digests, PROFILE),
            "wordless": Route("wordless", pipeline, policy, model, digests, PROFILE),
            "archive": Route("archive", pipeline, policy, None, digests),
            "empty": Route("empty", Pipeline([], metrics), policy, model, digests),
        },
        **stores,
        review=review,
        notary=Notary(RECEIPT_KEY),
        throttle=Throttle({DEFAULT: WIDE_LIMITS}, threads=8),
        queries=QueryWatch(),
        routing=Routing(()),
        clock=lambda: clock[0],
    )
    yield House(clock, service, stage, model, sink, audit, quarantine, log, metrics, make_scan)
    audit.close()
    ledger.close()
    quarantine.close()


def _records(log: Path) -> list[dict]:
    with SqliteReader(log) as reader:
        return [line["record"] for line in lines(reader)]


def _kinds(log: Path) -> list[str]:
    return [record["kind"] for record in _records(log)]


def test_the_decision_is_durable_before_the_model_is_asked(house):
    house.protect(b"a scan")
    assert house.model.seen == [["decided"]]
    assert _kinds(house.log) == ["decided", "answered"]


def test_an_admitted_scan_is_answered_with_prediction_receipt_and_place(house):
    reply = house.protect(b"a scan")
    assert (reply.verdict.disposition, reply.prediction, reply.place) == (Disposition.ADMIT, PREDICTION, 1)
    predicate = verify_receipt(reply.receipt.envelope, [RECEIPT_KEY.public_key()])["predicate"]
    assert predicate["prediction"] == {"sha256": PREDICTION.sha256}
    assert predicate["examination"]["sha256"] == documents.examination_sha256(reply.findings, reply.verdict)
    decided, answered = _records(house.log)
    assert decided["examination_sha256"] == predicate["examination"]["sha256"]
    assert answered["receipt_sha256"] == reply.receipt.sha256


def test_a_held_scan_is_on_disk_and_the_model_is_not_asked(house):
    reply = house.protect(b"q scan")
    assert (reply.verdict.disposition, reply.prediction) == (Disposition.QUARANTINE, None)
    predicate = verify_receipt(reply.receipt.envelope, [RECEIPT_KEY.public_key()])["predicate"]
    assert b"".join(house.quarantine.read(predicate["quarantineId"])) == b"q scan"
    assert house.model.seen == []


def test_a_rejected_scan_is_recorded_and_goes_nowhere(house):
    reply = house.protect(b"r scan")
    assert (reply.verdict.disposition, reply.prediction) == (Disposition.REJECT, None)
    assert (house.model.seen, list(house.quarantine.list())) == ([], [])
    assert _kinds(house.log) == ["decided", "answered"]


def test_an_empty_chain_admits_nothing(house):
    assert house.protect(b"a scan", route="empty").verdict.disposition is Disposition.REJECT
    assert house.model.seen == []


def test_a_route_without_a_model_answers_with_the_verdict(house):
    reply = house.protect(b"a scan", route="archive")
    assert (reply.verdict.disposition, reply.prediction) == (Disposition.ADMIT, None)


def test_without_a_durable_decision_nothing_is_asked_held_or_answered(house):
    house.sink.commits_left = 0
    for data in (b"a scan", b"q scan"):
        with pytest.raises(AuditError):
            house.protect(data)
    assert (house.model.seen, list(house.quarantine.list()), _kinds(house.log)) == ([], [], [])


def test_without_a_durable_answer_nothing_is_answered_or_remembered(house):
    house.sink.commits_left = 1
    with pytest.raises(AuditError):
        house.protect(b"a scan")
    assert _kinds(house.log) == ["decided"]
    house.sink.commits_left = float("inf")
    assert house.protect(b"a scan").prediction == PREDICTION
    assert len(house.stage.examined) == 2


@pytest.mark.parametrize(("fails", "told"), [(UpstreamError("no answer"), UpstreamError), (Overloaded("full"), Unkept)])
def test_a_model_or_queue_that_fails_is_recorded_and_may_be_asked_again(house, fails, told):
    house.model.fails = fails
    with pytest.raises(told):
        house.protect(b"a scan")
    assert _kinds(house.log) == ["decided", "failed"]
    house.model.fails = None
    assert house.protect(b"a scan").prediction == PREDICTION


def test_a_full_quarantine_acknowledges_nothing_and_its_failure_is_on_record_by_the_scans_digest(house):
    data = b"q" + bytes(2 << 20)
    with pytest.raises(Unkept):
        house.protect(data)
    decided, failed = _records(house.log)
    assert (decided["kind"], failed["kind"], failed["error"]) == ("decided", "failed", "Overloaded")
    assert failed["scan_sha256"] == decided["scan_sha256"] == hashlib.sha256(data).hexdigest()


def test_the_same_scan_gets_the_same_answer_and_is_examined_once(house):
    first = house.protect(b"a scan")
    assert house.protect(b"a scan") == first
    assert (len(house.stage.examined), len(house.model.seen)) == (1, 1)
    assert _kinds(house.log) == ["decided", "answered"]


def test_a_timeout_is_answered_and_not_remembered(house):
    assert house.protect(b"t scan").verdict.disposition is Disposition.QUARANTINE
    house.protect(b"t scan")
    assert len(house.stage.examined) == 2


def test_many_callers_with_one_scan_ask_the_model_once(house):
    together = threading.Barrier(8)

    def call(_: int) -> Reply:
        together.wait()
        return house.protect(b"a scan")

    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(call, range(8)))
    assert len({reply.receipt.sha256 for reply in replies}) == 1
    assert len(house.model.seen) == 1


def test_many_scans_at_once_are_each_decided_and_answered_once(house, checkpoint_key):
    scans = [b"aqru"[number % 4 : number % 4 + 1] + str(number).encode() for number in range(64)]
    with ThreadPoolExecutor(16) as pool:
        replies = list(pool.map(house.protect, scans))
    house.audit.close()
    records = _records(house.log)
    for kind in ("decided", "answered"):
        recorded = [record["scan_sha256"] for record in records if record["kind"] == kind]
        assert sorted(recorded) == sorted(reply.scan_sha256 for reply in replies)
    for reply in replies:
        assert records[reply.place]["receipt_sha256"] == reply.receipt.sha256
    with SqliteReader(house.log) as log:
        assert verify(log, [checkpoint_key.public_key()]).ok


def test_an_unknown_route_is_the_callers_mistake(house):
    with pytest.raises(ScanError, match="no such route"):
        house.protect(b"a scan", route="elsewhere")
    assert _kinds(house.log) == []


def test_a_refused_call_is_recorded(house):
    place = house.service.refuse(ScanError("the object is too large"), receiver="grpc", source="anonymous")
    assert _records(house.log)[place] | {"at": None} == {
        "schema": 1,
        "kind": "refused",
        "at": None,
        "receiver": "grpc",
        "source": "anonymous",
        "error": "ScanError",
        "detail": "the object is too large",
    }


def test_answers_and_unsafe_admissions_are_counted(house):
    house.protect(b"a scan")
    house.protect(b"u scan")
    value = house.metrics.registry.get_sample_value
    labels = {"receiver": "grpc", "modality": "other", "disposition": "admit"}
    assert value("scanward_scans_total", labels) == 2
    assert value("scanward_unsafe_admissions_total", {"setting": "signature.unsigned"}) == 1
    assert value("scanward_audit_records_total") == 4


def test_monitor_mode_admits_records_what_was_meant_and_counts(house):
    reply = house.protect(b"q scan", route="monitored")
    assert (reply.verdict.disposition, reply.prediction) == (Disposition.ADMIT, PREDICTION)
    assert list(house.quarantine.list()) == []
    predicate = verify_receipt(reply.receipt.envelope, [RECEIPT_KEY.public_key()])["predicate"]
    assert (predicate["disposition"], predicate["insteadOf"]) == ("admit", "quarantine")
    decided = _records(house.log)[0]
    assert (decided["disposition"], decided["unsafe"]) == ("admit", ["unsafe_monitor_until"])
    assert (decided["instead_of"]["disposition"], decided["instead_of"]["reasons"]) == ("quarantine", ["no_pixel_data"])
    value = house.metrics.registry.get_sample_value
    assert value("scanward_unsafe_admissions_total", {"setting": "unsafe_monitor_until"}) == 1


def test_monitor_mode_does_not_ask_a_model_about_a_scan_that_has_no_image(house):
    """It would fail, and be sent again all night."""
    house.model.needs_image = True
    reply = house.protect(b"q scan", route="monitored")
    assert (reply.verdict.disposition, reply.prediction, house.model.seen) == (Disposition.ADMIT, None, [])


def test_monitor_mode_lets_no_failed_signature_by(house):
    assert house.protect(b"r scan", route="monitored").verdict.disposition is Disposition.REJECT


def test_monitor_mode_is_for_the_source_that_it_was_written_for_and_ends_by_itself(house):
    for source in ("another", "over"):
        scan = house.make_scan(b"q scan", route="monitored", source=Source(source))
        assert house.service.protect(scan, Deadline.after(30.0)).verdict.disposition is Disposition.QUARANTINE


def test_what_monitor_mode_answered_is_not_the_answer_once_it_is_over(house):
    assert house.protect(b"q scan", route="monitored").verdict.disposition is Disposition.ADMIT
    house.clock[0] += timedelta(days=1)
    assert house.protect(b"q scan", route="monitored").verdict.disposition is Disposition.QUARANTINE


def _detected(data: bytes, p_value: float) -> Reply:
    found = Finding(DETECTION, Outcome.PASSED, Reason.OK, score=0.0, p_value=p_value)
    receipt = Receipt(b"receipt of " + data)
    return Reply(hashlib.sha256(data).hexdigest(), Verdict(Disposition.ADMIT, ()), None, receipt, len(data), (found,))


@pytest.mark.parametrize(
    ("loudest", "disposition", "suspect"),
    [
        (1e-5, Disposition.QUARANTINE, [4]),  # beyond every clean scan, and far
        (0.001, Disposition.ADMIT, []),  # as loud as one in a thousand: of 500 slices one may be
    ],
)
def test_one_slice_in_500_makes_a_study_suspect_and_is_named(house, loudest, disposition, suspect):
    study = house.service.begin_study("modelled", "grpc", Source("ct-scanner"))
    ranks = [(rank + 1) / 500 for rank in range(499)]
    for number, p_value in enumerate(ranks):
        study.answered(number, _detected(f"slice {number}".encode(), p_value))
    study.answered(500, _detected(b"odd!", loudest))
    reply = house.service.conclude(study)
    record = _records(house.log)[reply.place]
    assert (reply.judged.verdict.disposition, record["suspect"], len(record["p_values"])) == (disposition, suspect, 500)
    statement = verify_receipt(reply.receipt.envelope, [RECEIPT_KEY.public_key()])
    assert statement["predicate"]["disposition"] == disposition.label
    assert statement["predicate"]["examination"]["sha256"] == documents.study_sha256(reply.judged)


def test_a_route_with_a_model_takes_studies_only_where_its_policy_has_a_word_for_them(house):
    with pytest.raises(ScanError, match="no word for them"):
        house.service.begin_study("wordless", "grpc", Source("ct-scanner"))


def test_a_study_without_instances_is_no_study(house):
    with pytest.raises(ScanError, match="at least one"):
        house.service.conclude(house.service.begin_study("archive", "grpc", Source("ct-scanner")))


def test_the_record_says_all_that_the_policy_was_told(house):
    house.service.protect(house.make_scan(b"a scan"), Deadline.after(30.0), study_held=2)
    decided = _records(house.log)[0]
    told = ("modality", "source", "study_held", "rules", "instead_of")
    assert [decided[key] for key in told] == ["other", "ct-scanner", 2, [], None]
