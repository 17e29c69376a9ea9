"""Drift is watched by source, only on signed scans and once a patient; it is remembered, and decides about nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.data import get_testdata_file

from detectors.calibration import ConformalCalibration
from detectors.drift import Family
from detectors.ensemble import JOINED
from gateway.case import Case, Digests, Image
from gateway.errors import ConfigError
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.scan import Scan, Source
from gateway.store import drift
from gateway.store.drift import SUSPENDED, UNPROVEN, Calibrated, DriftWatch
from gateway.telemetry.metrics import Metrics
from signing import Reason, VerifiedView, read

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
PATIENT = b"1CT1"
KEY = bytes(range(32))
NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
DIGESTS = Digests(model="11" * 32, profile="22" * 32, artefact="aa" * 32, policy="44" * 32, trust="55" * 32)
ORDINARY, ODD = 0.5, 0.004

SIGNED = Finding("signature", Outcome.PASSED, Reason.OK)


@pytest.fixture(scope="module")
def calibrated() -> Calibrated:
    statistics = torch.from_numpy(np.random.default_rng(0).standard_normal(400))
    calibrations = dict.fromkeys(("twin", JOINED), ConformalCalibration.fit(statistics, 0.01))
    return Calibrated("ct", "aa" * 32, "confident", Family(calibrations, scans_between_false_alarms=1000), frames_max=4)


@pytest.fixture
def open_watch(tmp_path: Path, metrics: Metrics) -> Iterator[Callable[..., DriftWatch]]:
    opened = []

    def make(**options) -> DriftWatch:
        settings = {"patients_max": 1000, "metrics": metrics, "clock": lambda: 1000.0, **options}
        opened.append(DriftWatch(tmp_path / "drift.sqlite", KEY, **settings))
        return opened[-1]

    yield make
    for watch in opened:
        watch.close()


def detected(p_value: float) -> Finding:
    outcome, reason = (Outcome.FAILED, GatewayReason.SUSPECT) if p_value <= 0.01 else (Outcome.PASSED, Reason.OK)
    return Finding("detection", outcome, reason, p_value=p_value, p_values={"twin": p_value})


def case_of(
    patient: int, p_value: float, *, source: str = "ct-1", signature: Finding = SIGNED, frames: int = 1, signed: int = 4
) -> Case:
    """One image of a patient by number; of `signed` characters of whose Patient ID the view speaks."""
    data = CT.replace(PATIENT, f"{patient:04d}"[:signed].ljust(4).encode())
    elements = read(data)
    scan = Scan(memoryview(data), "00" * 32, "ct", "grpc", Source(source), elements, None)
    image = Image(np.zeros((frames, 1, 2, 2), np.float32), "ct")
    findings = (signature, Finding("preprocess", Outcome.PASSED, Reason.OK), detected(p_value))
    return Case(scan, NOW, DIGESTS, findings, view=VerifiedView.of_unsigned(elements), image=image)


def evidence(metrics: Metrics, detector: str = "twin", source: str = "ct-1") -> float | None:
    labels = {"detector": detector, "source": source, "model": "ct"}
    return metrics.registry.get_sample_value("scanward_drift_martingale", labels)


def suspended(metrics: Metrics, source: str = "ct-1") -> float | None:
    return metrics.registry.get_sample_value("scanward_drift_suspended", {"source": source, "model": "ct"})


def until_drift(watch: DriftWatch, calibrated: Calibrated, *, first: int = 0, **options) -> int:
    """Number of odd scans until drift is told."""
    observe = watch.on(calibrated)
    for count in range(1, 60):
        if observe(case_of(first + count, ODD, **options)).drifts:
            return count
    raise AssertionError("drift was never told")


def test_a_scanner_that_changed_suspends_the_guarantee_of_its_source_alone(
    open_watch: Callable[..., DriftWatch], calibrated: Calibrated, metrics: Metrics
) -> None:
    watch = open_watch()
    observe = watch.on(calibrated)
    for patient in range(1000, 1040):
        assert observe(case_of(patient, ORDINARY, source="ct-2")).guarantee == "confident"

    count = until_drift(watch, calibrated)

    assert 2 <= count <= 20
    assert observe(case_of(500, ORDINARY)).guarantee == SUSPENDED
    assert observe(case_of(501, ORDINARY, source="ct-2")).guarantee == "confident"
    assert (suspended(metrics), suspended(metrics, "ct-2")) == (1.0, 0.0)


def test_of_a_series_of_so_many_frames_that_no_rank_flags_it_nothing_is_promised(
    open_watch: Callable[..., DriftWatch], calibrated: Calibrated
) -> None:
    observe = open_watch().on(calibrated)
    assert observe(case_of(1, ORDINARY, frames=4)).guarantee == "confident"
    assert observe(case_of(2, ORDINARY, frames=5)).guarantee == UNPROVEN


def test_what_is_suspended_is_so_for_long_series_too(
    open_watch: Callable[..., DriftWatch], calibrated: Calibrated
) -> None:
    watch = open_watch()
    until_drift(watch, calibrated)
    assert watch.on(calibrated)(case_of(500, ORDINARY, frames=5)).guarantee == SUSPENDED


def test_it_begins_anew_and_tells_again_while_the_change_lasts(
    open_watch: Callable[..., DriftWatch], calibrated: Calibrated
) -> None:
    watch = open_watch()

    first = until_drift(watch, calibrated)

    assert until_drift(watch, calibrated, first=100) <= first + 1


def test_what_was_seen_survives_a_restart(
    open_watch: Callable[..., DriftWatch], calibrated: Calibrated, metrics: Metrics
) -> None:
    """The evidence of a few scans before a kill counts, and so does a drift."""
    count = until_drift(open_watch(), calibrated, source="ct-2")
    before = open_watch()
    for patient in range(200, 200 + count - 1):
        assert before.on(calibrated)(case_of(patient, ODD)).drifts == ()
    seen = evidence(metrics)
    metrics.drift_forgotten("ct")

    after = open_watch()
    observe = after.on(calibrated)

    assert evidence(metrics) == seen
    assert suspended(metrics, "ct-2") == 1.0
    assert observe(case_of(300, ODD)).drifts


@pytest.mark.parametrize(
    "case",
    [
        {"signature": Finding("signature", Outcome.FAILED, Reason.UNSIGNED)},
        {"signature": Finding("signature", Outcome.INDETERMINATE, Reason.REVOCATION_UNKNOWN)},
        {"frames": 2},
    ],
    ids=["unsigned", "unknown whether revoked", "several frames"],
)
def test_only_signed_single_images_count(
    open_watch: Callable[..., DriftWatch], calibrated: Calibrated, metrics: Metrics, case: dict
) -> None:
    """A stranger's thousand odd scans are no evidence; p-values that were corrected for frames are no places."""
    observe = open_watch().on(calibrated)
    for patient in range(60):
        assert observe(case_of(patient, ODD, **case)).guarantee == "confident"

    assert evidence(metrics) is None


def test_a_patient_counts_once_however_many_scans_there_are_of_him(
    open_watch: Callable[..., DriftWatch], calibrated: Calibrated, metrics: Metrics
) -> None:
    """Also when another source sends them again: anybody can repeat a signed scan that he has captured."""
    observe = open_watch().on(calibrated)
    observe(case_of(1, ODD))
    once = evidence(metrics)

    for _ in range(60):
        observe(case_of(1, ODD))
        observe(case_of(1, ODD, source="ct-2"))

    assert evidence(metrics) == once
    assert evidence(metrics, source="ct-2") is None


def test_scans_without_a_patient_number_count_once_a_study(
    open_watch: Callable[..., DriftWatch], calibrated: Calibrated, metrics: Metrics
) -> None:
    observe = open_watch().on(calibrated)
    observe(case_of(1, ODD, signed=0))
    once = evidence(metrics)
    observe(case_of(2, ODD, signed=0))

    assert evidence(metrics) == once


def test_another_artefact_ends_the_suspension(
    open_watch: Callable[..., DriftWatch], calibrated: Calibrated, metrics: Metrics
) -> None:
    """And nothing else does."""
    watch = open_watch()
    until_drift(watch, calibrated)

    observe = watch.on(replace(calibrated, artefact="bb" * 32))

    assert suspended(metrics) is None
    assert observe(case_of(1, ORDINARY)).guarantee == "confident"
    assert watch.on(calibrated)(case_of(900, ORDINARY)).guarantee == SUSPENDED


def test_what_cannot_be_kept_is_worth_nothing(
    open_watch: Callable[..., DriftWatch], calibrated: Calibrated, tmp_path: Path
) -> None:
    observe = open_watch().on(calibrated)
    with sqlite3.connect(tmp_path / "drift.sqlite") as other:
        other.execute("DROP TABLE seen")

    assert observe(case_of(1, ORDINARY)).guarantee == SUSPENDED


def test_what_is_remembered_is_bounded(
    open_watch: Callable[..., DriftWatch], calibrated: Calibrated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "STREAMS_MAX", 2)
    monkeypatch.setattr(drift, "_PRUNE_EVERY", 4)
    watch = open_watch(patients_max=10)
    observe = watch.on(calibrated)

    for patient in range(40):
        observe(case_of(patient, ORDINARY, source=f"ct-{patient % 2}"))
    observe(case_of(100, ORDINARY, source="ct-2"))

    with sqlite3.connect(tmp_path / "drift.sqlite") as other:
        assert other.execute("SELECT count(*) FROM seen").fetchone()[0] <= 10 + 2 * 4 + 1
        assert other.execute("SELECT source FROM streams ORDER BY number").fetchall() == [("ct-1",), ("ct-2",)]


def test_no_patient_can_be_read_from_it(
    open_watch: Callable[..., DriftWatch], calibrated: Calibrated, tmp_path: Path
) -> None:
    open_watch().on(calibrated)(case_of(7351, ODD))

    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())

    assert b"7351" not in written
    assert b"CompressedSamples" not in written
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())


def test_a_file_that_is_none_of_ours_is_refused(open_watch: Callable[..., DriftWatch], tmp_path: Path) -> None:
    (tmp_path / "drift.sqlite").write_bytes(b"not a database" * 100)

    with pytest.raises(ConfigError, match="drift"):
        open_watch()
