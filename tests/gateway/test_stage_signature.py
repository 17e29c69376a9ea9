"""The signature stage turns every verification into one finding, and passes on only what may be looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom.data import get_testdata_file

from gateway.case import Case, Digests
from gateway.deadline import Deadline
from gateway.finding import Outcome
from gateway.scan import Scan, Source
from gateway.stages.signature import SignatureStage
from gateway.store.replay import ReplayLedger
from gateway.telemetry.metrics import Metrics
from signing import AllowedSigner, Reason, Trust, TrustPolicy
from signing.sign import sign
from signing.testing import Hospital, flip_pixel_bit, strip_signatures

NOON = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
PATIENT = "CompressedSamples"
"""Part of the patient's name in CT_small."""


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital.make(tmp_path_factory.mktemp("hospital"), now=NOON)


@pytest.fixture(scope="module")
def unsigned() -> bytes:
    return Path(str(get_testdata_file("CT_small.dcm", download=False))).read_bytes()


@pytest.fixture(scope="module")
def signed(hospital: Hospital, unsigned: bytes) -> bytes:
    return sign(unsigned, signer=hospital.signer("ct"), at=NOON)


@pytest.fixture
def replay(tmp_path: Path, metrics: Metrics) -> Iterator[ReplayLedger]:
    ledger = ReplayLedger(tmp_path / "replay.sqlite", bytes(32), age_s_max=None, metrics=metrics)
    yield ledger
    ledger.close()


@pytest.fixture
def examine(hospital: Hospital, replay: ReplayLedger, metrics: Metrics, digests: Digests) -> Callable[..., Case]:
    def run(data: bytes, *, enrolled: bool = False, trust: Trust | None = None, at: datetime = NOON) -> Case:
        scan = Scan.receive(data, route="ct", receiver="grpc", source=Source("ct-scanner", enrolled=enrolled))
        stage = SignatureStage(trust or hospital.trust(), replay, metrics)
        return stage.run(Case(scan, at, digests), Deadline.after(60.0))

    return run


def test_a_signed_scan_goes_on_as_what_its_signature_covers(examine: Callable[..., Case], signed: bytes) -> None:
    case = examine(signed)
    assert [(each.stage, each.outcome, each.reason) for each in case.findings] == [
        ("signature", Outcome.PASSED, Reason.OK)
    ]
    assert case.view is not None
    assert case.view.signed


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (flip_pixel_bit, Reason.MAC_MISMATCH),
        (lambda signed: signed[:-1000], Reason.MALFORMED),
        (lambda _: b"", Reason.MALFORMED),
        (lambda _: bytes(5000), Reason.MALFORMED),
    ],
    ids=["one pixel changed", "cut off", "empty", "no DICOM"],
)
def test_a_scan_that_fails_goes_no_further(
    make: Callable[[bytes], bytes], reason: Reason, examine: Callable[..., Case], signed: bytes
) -> None:
    case = examine(make(signed))
    assert (case.findings[0].outcome, case.findings[0].reason) == (Outcome.FAILED, reason)
    assert case.view is None


def test_a_strangers_signature_is_untrusted(examine: Callable[..., Case], hospital: Hospital, unsigned: bytes) -> None:
    case = examine(sign(unsigned, signer=hospital.signer("stranger"), at=NOON))
    assert (case.findings[0].outcome, case.findings[0].reason) == (Outcome.FAILED, Reason.UNTRUSTED)
    assert case.view is None


def test_an_unsigned_scan_is_failed_and_still_shown_to_the_other_stages(
    examine: Callable[..., Case], unsigned: bytes
) -> None:
    """So that a reviewer learns what the detectors say; the policy alone could admit it."""
    case = examine(unsigned)
    assert (case.findings[0].outcome, case.findings[0].reason) == (Outcome.FAILED, Reason.UNSIGNED)
    assert case.view is not None
    assert not case.view.signed


def test_a_scan_without_the_signature_that_its_source_always_gives_was_stripped(
    examine: Callable[..., Case], signed: bytes
) -> None:
    case = examine(strip_signatures(signed), enrolled=True)
    assert (case.findings[0].outcome, case.findings[0].reason) == (Outcome.FAILED, Reason.STRIPPED)
    assert case.view is None


def test_what_cannot_be_established_is_indeterminate(
    examine: Callable[..., Case], hospital: Hospital, signed: bytes
) -> None:
    """Revocation lists that have run out say nothing; a hard failure would blame the signer."""
    case = examine(signed, trust=hospital.trust(), at=NOON + timedelta(days=60))
    assert (case.findings[0].outcome, case.findings[0].reason) == (Outcome.INDETERMINATE, Reason.REVOCATION_UNKNOWN)
    assert case.view is None


def test_only_the_allowed_signers_pass(examine: Callable[..., Case], hospital: Hospital, signed: bytes) -> None:
    trust = hospital.trust(TrustPolicy(allowed_signers=(AllowedSigner(common_name="MR Scanner 0001"),)))
    assert examine(signed, trust=trust).findings[0].reason is Reason.SIGNER_NOT_ALLOWED


def test_every_examination_is_counted(examine: Callable[..., Case], signed: bytes, metrics: Metrics) -> None:
    for data in (signed, flip_pixel_bit(signed), flip_pixel_bit(signed, 7), b""):
        examine(data)
    value = metrics.registry.get_sample_value
    for outcome, reason, count in (("passed", "ok", 1), ("failed", "mac_mismatch", 2), ("failed", "malformed", 1)):
        labels = {"outcome": outcome, "reason": reason, "profile": "inference"}
        assert value("scanward_signatures_total", labels) == count


def test_no_finding_names_the_patient(examine: Callable[..., Case], signed: bytes, unsigned: bytes) -> None:
    assert PATIENT.encode() in signed
    for data in (signed, unsigned, flip_pixel_bit(signed), signed[:-9]):
        assert PATIENT not in repr(examine(data).findings)
