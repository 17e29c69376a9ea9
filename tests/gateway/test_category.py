"""A scan is compared with its own kind, as far as somebody vouches for what kind that is."""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data import get_testdata_file

from detectors.artifact import CATEGORIES, Artefact, recalibrated
from detectors.ensemble import JOINED, Ensemble, join
from detectors.errors import ArtefactError, InputError
from detectors.mondrian import Category, Mondrian, Taxonomy
from gateway.case import Case, Digests, Evidence, Image
from gateway.deadline import Deadline
from gateway.engine.local import LocalEngine
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.profile import Profile
from gateway.protected import ProtectedModel
from gateway.scan import ANONYMOUS, Scan, Source
from gateway.settings.models import EngineConfig, ModelConfig
from gateway.settings.trust import ArtefactTrust
from gateway.stages.category import claimable
from gateway.stages.detection import DetectionStage
from gateway.store.drift import UNPROVEN, Calibrated, DriftWatch
from gateway.telemetry.metrics import Metrics
from signing import Reason, VerifiedView, read, sign, verify
from signing.testing import Hospital

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()  # of GE MEDICAL SYSTEMS
PHANTOM = Path(__file__).parents[2] / "lab" / "assets" / "phantom"
NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
HOME, OTHER, MR = ("CT", "ct-1"), ("CT", "ct-2"), ("MR", "mr-1")
THREE = Taxonomy(("modality", "source"), {HOME: 99, OTHER: 99, MR: 99})
MADE = Taxonomy(("modality", "manufacturer"), {("CT", "GE MEDICAL SYSTEMS"): 99, ("MR", "ACME"): 99})
SIGNED = Finding("signature", Outcome.PASSED, Reason.OK)
UNSIGNED = Finding("signature", Outcome.FAILED, Reason.UNSIGNED)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital.make(tmp_path_factory.mktemp("pki"))


def case_of(view: VerifiedView, found: Finding, source: Source, pixels: NDArray[np.float32] | None = None) -> Case:
    scan = Scan(memoryview(CT), "00" * 32, "ct", "grpc", source, read(CT), None)
    image = None if pixels is None else Image(pixels, "phantom")
    return Case(scan, NOW, Digests("", "", "", "", ""), (found,), view=view, image=image)


def unsigned(modality: str, manufacturer: str = "GE MEDICAL SYSTEMS") -> VerifiedView:
    dataset = dcmread(io.BytesIO(CT))
    dataset.Modality, dataset.Manufacturer = modality, manufacturer
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return VerifiedView.of_unsigned(read(buffer.getvalue()))


def test_a_verified_signature_vouches_for_what_it_covers(hospital: Hospital) -> None:
    data = sign(CT, signer=hospital.signer("ct"), at=datetime.now(UTC))
    signed = verify(read(data), hospital.trust(), at=datetime.now(UTC))
    assert claimable(case_of(signed.view, SIGNED, Source("ct-1")), THREE) == (HOME,)
    assert claimable(case_of(signed.view, SIGNED, Source("ct-1")), MADE) == (("CT", "GE MEDICAL SYSTEMS"),)


@pytest.mark.parametrize("modality", ["CT", "MR", "XX"])
@pytest.mark.parametrize("manufacturer", ["GE MEDICAL SYSTEMS", "ACME", ""])
def test_no_header_can_be_written_to_ones_own_advantage(modality: str, manufacturer: str) -> None:
    view = unsigned(modality, manufacturer)
    assert claimable(case_of(view, UNSIGNED, Source("ct-1")), MADE) == tuple(MADE.sizes)
    assert claimable(case_of(view, UNSIGNED, Source("ct-1")), THREE) == (HOME,)  # the sender has shown who it is


@pytest.mark.parametrize(
    ("source", "claimed"),
    [
        (Source("ct-2"), (OTHER,)),
        (Source("ct-2", calling_ae="CT2", tls_subject="ct-2.hospital"), (OTHER,)),
        (Source("ct-2", calling_ae="CT2"), (HOME, OTHER, MR)),
        (Source(ANONYMOUS), (HOME, OTHER, MR)),
        (Source("us-1"), ()),
    ],
)
def test_a_source_counts_as_far_as_it_has_shown_who_it_is(source: Source, claimed: tuple[Category, ...]) -> None:
    assert claimable(case_of(unsigned("CT"), UNSIGNED, source), THREE) == claimed


def test_signed_values_are_compared_as_categories_are_named() -> None:
    view = unsigned("CT", "  Ge  Medical Systems ")
    assert claimable(case_of(view, SIGNED, Source("ct-1")), MADE) == (("CT", "GE MEDICAL SYSTEMS"),)
    assert claimable(case_of(unsigned("CT", ""), SIGNED, Source("ct-1")), MADE) == ()


class Unasked:
    """An engine that nobody may ask."""

    ready = True

    def submit(self, *_: Any) -> Future[Evidence]:
        raise AssertionError("the detectors were asked")

    explain = submit


def test_a_kind_that_was_not_calibrated_is_indeterminate_and_not_examined() -> None:
    stage = DetectionStage(Unasked(), false_positive_rate=0.05, grey_p=None, taxonomy=THREE)
    case = case_of(unsigned("XA"), SIGNED, Source("ct-1"), np.zeros((1, 1, 8, 8), np.float32))
    finding = stage.run(case, Deadline.after(5)).findings[-1]
    assert (finding.outcome, finding.reason) == (Outcome.INDETERMINATE, GatewayReason.NOT_CALIBRATED)
    assert finding.p_value is None


# -- the whole way, with the bundled detectors calibrated on two kinds of noise --


def noise(seed: int, count: int, level: float) -> NDArray[np.float32]:
    """A ramp under noise: the rougher, the louder the bundled detectors find most of it."""
    random = np.random.default_rng(seed)
    rough = random.random((count, 1, 128, 128), np.float32) - 0.5
    return np.clip(np.linspace(0.2, 0.8, 128, dtype=np.float32) + level * rough, 0, 1).astype(np.float32)


CALM, LOUD = 0.03, 0.8
COUNT, FPR = 24, 0.05


def pooled(ensemble: Ensemble, images: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        seen = ensemble.probe.observe(images, ensemble.needs)
        scores = {each.detector.name: each.detector.score(seen).values for each in ensemble.members}
    return scores | {JOINED: join(ensemble.members, ensemble.channels, scores)}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ProtectedModel:
    """The bundled artefact with its calibration replaced by one for each kind, written and loaded again."""
    directory = tmp_path_factory.mktemp("artefact")
    manifest, onnx = (PHANTOM / "detectors" / "manifest.json").read_bytes(), (PHANTOM / "model.onnx").read_bytes()
    profile, device = Profile.load(PHANTOM / "profile.toml"), torch.device("cpu")
    old = Artefact.load(PHANTOM / "detectors", manifest, onnx, profile.sha256, device)
    images = torch.from_numpy(np.concatenate([noise(1, COUNT, CALM), noise(2, COUNT, LOUD)]))
    scores = pooled(old.ensemble, images)
    mondrian = Mondrian.fit(THREE.attributes, [HOME] * COUNT + [MR] * COUNT, scores, FPR)
    ensemble = Ensemble(
        old.ensemble.probe, old.ensemble.members, old.ensemble.channels, old.ensemble.conformal, mondrian
    )
    Artefact.write(directory, ensemble, old.denoisers, {**old.manifest, "fpr": FPR, "n_b": 2 * COUNT})
    config = ModelConfig(profile=PHANTOM / "profile.toml", model=PHANTOM / "model.onnx", detectors=directory)
    trust = ArtefactTrust(public_keys=(), unsafe_unsigned_artefacts=True, unsafe_marginal_guarantee=True)
    return ProtectedModel.load("phantom", config, trust)


@pytest.fixture(scope="module")
def engine(model: ProtectedModel) -> Iterator[LocalEngine]:
    settings = EngineConfig(device="cpu", batch_size_max=4, batch_wait_ms_max=50.0, queue_max=64, threads=1)
    with LocalEngine([model], settings, Metrics()) as engine:
        yield engine


@pytest.fixture
def examine(model: ProtectedModel, engine: LocalEngine):
    stage = DetectionStage(engine, false_positive_rate=FPR, grey_p=None, taxonomy=model.taxonomy)

    def run(view: VerifiedView, found: Finding, source: str, pixels: NDArray[np.float32]) -> Case:
        return stage.run(case_of(view, found, Source(source), pixels), Deadline.after(60))

    return run


def test_the_artefact_says_by_what_and_on_how_many_it_was_calibrated(model: ProtectedModel) -> None:
    assert model.taxonomy == Taxonomy(THREE.attributes, {HOME: COUNT, MR: COUNT})
    assert model.guarantee == "marginal"


def test_each_kind_is_judged_by_its_own_and_a_stranger_by_the_strictest(examine) -> None:
    loud = noise(5, 1, LOUD)
    as_mr = examine(unsigned("MR"), SIGNED, "mr-1", loud)
    as_ct = examine(unsigned("CT"), SIGNED, "ct-1", loud)
    assert as_mr.findings[-1].p_value > FPR >= as_ct.findings[-1].p_value
    assert (as_mr.evidence.category, as_ct.evidence.category) == (MR, HOME)
    for claim in ("CT", "MR"):
        stranger = examine(unsigned(claim), UNSIGNED, ANONYMOUS, loud)
        assert stranger.findings[-1].p_value == as_ct.findings[-1].p_value
        assert stranger.evidence.category is None
        for name, p_value in stranger.findings[-1].p_values.items():
            assert p_value == min(as_mr.findings[-1].p_values[name], as_ct.findings[-1].p_values[name])


def test_drift_is_watched_by_category_and_nothing_is_promised_where_that_is_open(
    model: ProtectedModel, examine, tmp_path: Path
) -> None:
    metrics = Metrics()
    watch = DriftWatch(tmp_path / "drift.sqlite", bytes(32), patients_max=1000, metrics=metrics)
    calibrated = Calibrated.of(model, 1000.0)
    assert set(calibrated.kinds) == {HOME, MR}
    assert {each.frames_max for each in calibrated.each} == {int(FPR * (COUNT + 1))}
    observe = watch.on(calibrated)
    loud = examine(unsigned("MR"), SIGNED, "mr-1", noise(6, 1, LOUD))
    assert observe(loud).guarantee == "marginal"
    assert observe(examine(unsigned("MR"), UNSIGNED, ANONYMOUS, noise(6, 1, LOUD))).guarantee == UNPROVEN
    labels = {"detector": JOINED, "source": "mr-1", "model": "phantom"}
    assert metrics.registry.get_sample_value("scanward_drift_martingale", labels) is not None
    watch.close()


def test_a_manifest_that_names_other_categories_than_were_calibrated_is_refused(model: ProtectedModel) -> None:
    changed = model.manifest.replace(b'"mr-1"', b'"mr-2"')
    assert changed != model.manifest
    with pytest.raises(ArtefactError, match="other categories"):
        Artefact.load(model.artefact, changed, model.onnx, model.profile.sha256, torch.device("cpu"))
    assert CATEGORIES.encode() in model.manifest


def test_categories_are_not_recalibrated_as_a_whole_nor_claimed_where_there_are_none(
    model: ProtectedModel, tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match="calibrated by category"):
        recalibrated(model.artefact, model.manifest, {}, tmp_path, {})
    loaded = Artefact.load(model.artefact, model.manifest, model.onnx, model.profile.sha256, torch.device("cpu"))
    plain = replace(loaded, ensemble=_without_categories(loaded.ensemble)).ensemble
    with pytest.raises(InputError, match="not calibrated by category"):
        plain.examine(torch.zeros(1, 1, 128, 128), claims=[[HOME]])


def _without_categories(ensemble: Ensemble) -> Ensemble:
    return Ensemble(ensemble.probe, ensemble.members, ensemble.channels, ensemble.conformal)
