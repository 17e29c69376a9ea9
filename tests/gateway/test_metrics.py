"""The metrics' names and labels are API, and no sender can add a series."""

from __future__ import annotations

import math
import re
import urllib.request

from gateway.finding import Finding, GatewayReason, Outcome
from gateway.receivers.scraping import MetricsDoor
from gateway.settings.doors import MetricsConfig
from gateway.telemetry.metrics import Metrics
from gateway.verdict import Disposition, Verdict
from signing import Reason

ADMITTED = Verdict(Disposition.ADMIT, (), ("signature.unsigned",))


def _scrape(metrics: Metrics) -> dict[str, float]:
    with (
        MetricsDoor(MetricsConfig(address="127.0.0.1:0"), metrics.registry) as door,
        urllib.request.urlopen(f"http://{door.address}/metrics", timeout=10) as answer,
    ):
        text = answer.read().decode()
    samples = re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in samples}


def _used() -> Metrics:
    metrics = Metrics(clock=lambda: 1000.0)
    metrics.found(Finding("detection", Outcome.PASSED, Reason.OK, p_values={"uad": 0.004}, seconds=0.25))
    metrics.answered("grpc", "CT", ADMITTED, 0.5)
    metrics.signature("failed", "mac_mismatch", "inference")
    metrics.upstream("ct", "ok", 0.02)
    metrics.batch(3)
    metrics.queue("engine", 7)
    metrics.held(2)
    metrics.ready(True)
    metrics.audit_records(5)
    metrics.checkpointed_at(940.0)
    metrics.replay_rows(4)
    metrics.revocation({"hospital": 900.0, "legacy": None})
    metrics.drift("ct-1", "chest", {"uad": 0.25}, suspended=True)
    return metrics


def test_every_metric_has_its_contracted_name_and_labels():
    samples = _scrape(_used())
    expected = {
        'scanward_scans_total{disposition="admit",modality="CT",receiver="grpc"}': 1,
        'scanward_stage_seconds_bucket{le="0.25",stage="detection"}': 1,
        'scanward_stage_seconds_sum{stage="detection"}': 0.25,
        'scanward_protect_seconds_sum{disposition="admit",receiver="grpc"}': 0.5,
        'scanward_findings_total{outcome="passed",reason="ok",stage="detection"}': 1,
        'scanward_signatures_total{outcome="failed",profile="inference",reason="mac_mismatch"}': 1,
        'scanward_upstream_seconds_sum{outcome="ok",upstream="ct"}': 0.02,
        "scanward_batch_size_sum": 3,
        'scanward_queue_depth{queue="engine"}': 7,
        "scanward_quarantine_held": 2,
        "scanward_ready": 1,
        'scanward_unsafe_admissions_total{setting="signature.unsigned"}': 1,
        "scanward_audit_records_total": 5,
        "scanward_audit_checkpoint_age_seconds": 60,
        "scanward_replay_ledger_rows": 4,
        'scanward_revocation_age_seconds{trust="hospital"}': 100,
        'scanward_drift_martingale{detector="uad",model="chest",source="ct-1"}': 0.25,
        'scanward_drift_suspended{model="chest",source="ct-1"}': 1,
    }
    assert {name: samples.get(name) for name in expected} == expected
    assert any(name.startswith('scanward_build_info{version="') and value == 1 for name, value in samples.items())


def test_p_values_fall_into_the_contracted_buckets():
    samples = _scrape(_used())
    bounds = ["0.0001", "0.0005", "0.001", "0.005", "0.01", "0.05", "0.1", "0.5", "1.0", "+Inf"]
    counts = [samples[f'scanward_detector_p_value_bucket{{detector="uad",le="{bound}"}}'] for bound in bounds]
    assert counts == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    assert sum(name.startswith("scanward_detector_p_value_bucket") for name in samples) == len(bounds)


def test_a_stage_that_did_not_run_has_no_time():
    metrics = Metrics()
    metrics.found(Finding("detection", Outcome.INDETERMINATE, GatewayReason.NOT_RUN))
    assert not any(name.startswith("scanward_stage_seconds_count") for name in _scrape(metrics))


def test_a_profile_that_is_not_in_the_list_becomes_other():
    metrics = Metrics()
    metrics.signature("passed", "ok", "made up by a stranger")
    assert 'scanward_signatures_total{outcome="passed",profile="other",reason="ok"}' in _scrape(metrics)


def test_a_clock_that_steps_back_gives_no_negative_age():
    metrics = Metrics(clock=lambda: 10.0)
    metrics.checkpointed_at(500.0)
    assert _scrape(metrics)["scanward_audit_checkpoint_age_seconds"] == 0


def test_a_trust_policy_that_is_gone_has_no_age_and_one_without_material_has_no_number():
    metrics = _used()
    assert math.isnan(_scrape(metrics)['scanward_revocation_age_seconds{trust="legacy"}'])
    metrics.revocation({"hospital": 950.0})
    ages = {name: value for name, value in _scrape(metrics).items() if name.startswith("scanward_revocation_age")}
    assert ages == {'scanward_revocation_age_seconds{trust="hospital"}': 50}


def test_two_instances_share_nothing():
    first, second = _used(), Metrics()
    assert "scanward_audit_records_total" in _scrape(first)
    assert _scrape(second)["scanward_audit_records_total"] == 0
