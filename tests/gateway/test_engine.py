"""The engine with a real worker process and a real artefact: it batches, it answers alike, and it survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from detectors.artifact import Artefact
from detectors.neighbours.jpeg import Jpeg
from detectors.neighbours.squeezing import MedianShift
from detectors.observation import Needs
from gateway.case import Case, Evidence, Image
from gateway.deadline import Deadline
from gateway.engine.engine import EngineError, ExpiredError, GreyZone, WorkerLostError
from gateway.engine.local import LocalEngine
from gateway.engine.process import KEPT_MEMORY
from gateway.errors import Abandoned, ConfigError, Overloaded
from gateway.finding import GatewayReason, Outcome
from gateway.profile import Profile
from gateway.protected import ProtectedModel
from gateway.settings.models import EngineConfig
from gateway.stages.denoising import DenoisingStage
from gateway.stages.detection import DetectionStage
from gateway.telemetry.metrics import Metrics
from tiny import PROFILE, PROFILE_TEXT, SIDE, noise, onnx_model, protected
from waiting import until

SHIFTS = ("jpeg75", "median3")
EVERYWHERE = GreyZone(0.0, 1.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ProtectedModel:
    """A model with two calibrated prediction-shift detectors and one denoiser."""
    return protected(tmp_path_factory.mktemp("artefact"), (Jpeg(75), MedianShift()))


def settings(**changes: Any) -> EngineConfig:
    values = {"device": "cpu", "batch_size_max": 8, "batch_wait_ms_max": 20.0, "queue_max": 64, "threads": 1}
    return EngineConfig.model_validate(values | changes)


@pytest.fixture(scope="module")
def engine(model: ProtectedModel) -> Iterator[LocalEngine]:
    with LocalEngine([model], settings(), Metrics()) as engine:
        yield engine


@pytest.fixture(scope="module")
def artefact(model: ProtectedModel) -> Artefact:
    """The same artefact in this process: what the worker must agree with."""
    return Artefact.load(model.artefact, model.manifest, model.onnx, PROFILE.sha256, torch.device("cpu"))


def soon() -> Deadline:
    return Deadline.after(60.0)


def test_answers_as_the_ensemble_itself_does(engine: LocalEngine, artefact: Artefact) -> None:
    pixels = noise(11)
    evidence = engine.submit(Image(pixels, "tiny"), soon(), EVERYWHERE).result(60)
    seen = artefact.ensemble.examine(torch.from_numpy(pixels))
    assert evidence.p_value == pytest.approx(float(seen.p_value[0]))
    assert evidence.scores == pytest.approx({name: float(values[0]) for name, values in seen.scores.items()}, abs=1e-5)
    assert evidence.p_values == pytest.approx({name: float(values[0]) for name, values in seen.p_values.items()})
    np.testing.assert_allclose(evidence.output, seen.logits[0].numpy(), atol=1e-5)
    denoised = artefact.denoisers["median"](torch.from_numpy(pixels))
    assert evidence.denoised is not None
    np.testing.assert_allclose(evidence.denoised, denoised.numpy(), atol=1e-6)
    expected = artefact.ensemble.probe.observe(denoised, Needs()).logits[0].numpy()
    np.testing.assert_allclose(evidence.denoised_outputs["median"], expected, atol=1e-5)


def test_denoises_in_the_grey_zone_alone(engine: LocalEngine) -> None:
    image = Image(noise(11), "tiny")
    p_value = engine.submit(image, soon(), None).result(60).p_value
    for grey, wanted in (
        (None, False),
        (GreyZone(0.0, p_value), True),
        (GreyZone(p_value, 1.0), False),
        (GreyZone(0.0, p_value * 0.999), False),
    ):
        evidence = engine.submit(image, soon(), grey).result(60)
        assert (evidence.denoised is not None) == bool(evidence.denoised_outputs) == wanted


def test_a_series_is_judged_by_its_loudest_frame_corrected(engine: LocalEngine, artefact: Artefact) -> None:
    """More frames than a batch holds; every one is seen, and all are denoised."""
    pixels = noise(12, 20)
    evidence = engine.submit(Image(pixels, "tiny"), soon(), EVERYWHERE).result(60)
    seen = artefact.ensemble.examine(torch.from_numpy(pixels))
    assert evidence.p_value == pytest.approx(min(1.0, 20 * float(seen.p_value.min())))
    assert evidence.scores["jpeg75"] == pytest.approx(float(seen.scores["jpeg75"].max()), abs=1e-5)
    shares = torch.softmax(seen.logits, 1).mean(0).numpy()
    np.testing.assert_allclose(np.exp(evidence.output), shares, atol=1e-5)
    assert evidence.denoised is not None
    assert evidence.denoised.shape == pixels.shape


def test_scans_of_many_threads_are_examined_together(model: ProtectedModel, artefact: Artefact) -> None:
    """And each gets its own answer."""
    metrics = Metrics()
    wanted = artefact.ensemble.examine(torch.from_numpy(np.concatenate([noise(100 + i) for i in range(48)])))
    with LocalEngine([model], settings(batch_wait_ms_max=50.0), metrics) as engine, ThreadPoolExecutor(16) as threads:

        def ask(seed: int) -> Evidence:
            return engine.submit(Image(noise(100 + seed), "tiny"), soon(), None).result(60)

        answers = list(threads.map(ask, range(48)))
    np.testing.assert_allclose([each.output for each in answers], wanted.logits.numpy(), atol=1e-4)
    batches = metrics.registry.get_sample_value("scanward_batch_size_count")
    images = metrics.registry.get_sample_value("scanward_batch_size_sum")
    assert images == 48
    assert batches is not None
    assert images / batches > 2


def test_an_image_that_the_detectors_cannot_take_spoils_no_other(model: ProtectedModel) -> None:
    with LocalEngine([model], settings(batch_wait_ms_max=500.0, batch_size_max=2), Metrics()) as engine:
        bad = engine.submit(Image(np.full((1, 1, SIDE, SIDE), np.nan, np.float32), "tiny"), soon(), None)
        good = engine.submit(Image(noise(1), "tiny"), soon(), None)
        assert 0 < good.result(60).p_value <= 1
        with pytest.raises(EngineError, match="InputError"):
            bad.result(60)


def test_a_worker_keeps_the_memory_of_a_batch_for_the_next(model: ProtectedModel) -> None:
    with LocalEngine([model], settings(), Metrics()) as engine:
        environment = Path(f"/proc/{engine.worker_pid}/environ").read_text().split("\0")
        assert {f"{name}={value}" for name, value in KEPT_MEMORY.items()} <= set(environment)


def test_a_killed_worker_loses_its_batch_and_is_replaced(model: ProtectedModel) -> None:
    metrics = Metrics()
    with LocalEngine([model], settings(), metrics) as engine:
        first = engine.worker_pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)  # so that the batch is surely in its hands when it dies
        caught = engine.submit(Image(noise(1), "tiny"), soon(), None)
        until(lambda: metrics.registry.get_sample_value("scanward_batch_size_count") == 1)
        os.kill(first, signal.SIGKILL)
        with pytest.raises(WorkerLostError):
            caught.result(60)
        assert 0 < engine.submit(Image(noise(2), "tiny"), soon(), None).result(60).p_value <= 1
        assert engine.ready
        assert engine.worker_pid not in (None, first)


def test_a_worker_that_hangs_is_taken_for_lost(model: ProtectedModel) -> None:
    with LocalEngine([model], settings(), Metrics(), batch_s_max=0.2) as engine:
        pid = engine.worker_pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(WorkerLostError):
            engine.submit(Image(noise(1), "tiny"), soon(), None).result(60)


def test_the_worker_dies_with_the_gateway(model: ProtectedModel, tmp_path: Path) -> None:
    """Even when the gateway gets no chance to say so, and the worker is in the middle of something."""
    (tmp_path / "manifest").write_bytes(model.manifest)
    (tmp_path / "model").write_bytes(model.onnx)
    (tmp_path / "profile").write_bytes(PROFILE_TEXT)
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from gateway.settings.models import EngineConfig\nfrom gateway.engine.local import LocalEngine\n"
        "from gateway.telemetry.metrics import Metrics\nfrom gateway.profile import Profile\n"
        "from gateway.protected import ProtectedModel\n"
        "here = Path(sys.argv[1])\n"
        "model = ProtectedModel('tiny', Profile.from_toml((here/'profile').read_bytes()), (here/'model').read_bytes(),"
        " Path(sys.argv[2]), (here/'manifest').read_bytes(), 'confident', 0.1, 0.01, frozenset())\n"
        f"engine = LocalEngine([model], EngineConfig.model_validate({settings().model_dump()!r}), Metrics())\n"
        "engine.start()\nprint(engine.worker_pid, flush=True)\ntime.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path), str(model.artefact)], stdout=subprocess.PIPE, text=True
    ) as gateway:
        assert gateway.stdout is not None
        worker = int(gateway.stdout.readline())
        os.kill(worker, signal.SIGSTOP)
        gateway.kill()
    until(lambda: not _alive(worker))


def test_a_caller_who_has_gone_costs_nothing(model: ProtectedModel) -> None:
    metrics = Metrics()
    with LocalEngine([model], settings(batch_wait_ms_max=50.0), metrics) as engine:
        gone = engine.submit(Image(noise(1), "tiny"), Deadline.after(0.0), None)
        hung_up = engine.submit(Image(noise(1), "tiny"), Deadline.after(60.0, cancelled=lambda: True), None)
        waits = engine.submit(Image(noise(2), "tiny"), soon(), None)
        assert waits.result(60).p_value > 0
        for future in (gone, hung_up):
            with pytest.raises(ExpiredError):
                future.result(60)
    assert metrics.registry.get_sample_value("scanward_batch_size_sum") == 1


def test_a_full_queue_says_so(model: ProtectedModel) -> None:
    with LocalEngine([model], settings(queue_max=2, batch_wait_ms_max=10_000.0), Metrics()) as engine:
        waiting = [engine.submit(Image(noise(i), "tiny"), soon(), None) for i in range(2)]
        with pytest.raises(Overloaded):
            engine.submit(Image(noise(3), "tiny"), soon(), None)
    for future in waiting:
        with pytest.raises(WorkerLostError, match="closed"):
            future.result(60)


def test_closing_frees_the_worker_and_the_memory(model: ProtectedModel) -> None:
    before = _maps()
    with LocalEngine([model], settings(), Metrics()) as engine:
        pid = engine.worker_pid
        assert pid is not None
        assert _maps() == before + 1
        assert "scanward-images" in Path(f"/proc/{pid}/maps").read_text()
        assert "grpc" not in Path(f"/proc/{pid}/maps").read_text()
        engine.submit(Image(noise(1), "tiny"), soon(), EVERYWHERE).result(60)
    assert not _alive(pid)
    assert not engine.ready
    assert _maps() == before
    with pytest.raises(WorkerLostError):
        engine.submit(Image(noise(1), "tiny"), soon(), None)


@pytest.mark.parametrize(
    "images", [np.zeros((1, 1, 8, 8)), np.zeros((0, 1, SIDE, SIDE)), np.zeros((65, 1, SIDE, SIDE))]
)
def test_an_image_of_another_shape_is_a_mistake_of_the_caller(engine: LocalEngine, images: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="takes 1 to"):
        engine.submit(Image(images.astype(np.float32), "tiny"), soon(), None)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"onnx": onnx_model() + b"\0\0"}, "another model"),
        ({"manifest": b"{}"}, "manifest"),
        ({"profile": Profile.from_toml(PROFILE_TEXT + b"# touched\n")}, "another profile"),
        ({"artefact": Path("/nonexistent")}, "missing"),
    ],
)
def test_what_the_worker_cannot_run_is_refused_at_the_start(
    model: ProtectedModel, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=f"models.tiny.*{words}"):
        LocalEngine([replace(model, **change)], settings(), Metrics()).start()


def test_a_device_that_is_not_there_is_refused(model: ProtectedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"engine\.device"):
        LocalEngine([model], settings(device="cuda"), Metrics()).start()


# -- the stages that ask the engine --


def ask(engine: LocalEngine, case: Case, *, rate: float, grey_p: float, deadline: Deadline | None = None) -> Case:
    """What the two stages make of a case that has an image."""
    deadline = deadline or soon()
    case = DetectionStage(engine, false_positive_rate=rate, grey_p=grey_p).run(case, deadline)
    if not case.has("evidence"):
        return case
    return DenoisingStage(PROFILE, false_positive_rate=rate, grey_p=grey_p).run(case, deadline)


@pytest.fixture
def case(make_case: Callable[..., Case]) -> Case:
    return replace(make_case(findings=()), image=Image(noise(11), "tiny"))


def test_a_scan_is_suspect_at_the_rate_and_passes_above_the_grey_zone(engine: LocalEngine, case: Case) -> None:
    detection, denoising = ask(engine, case, rate=1e-9, grey_p=1e-8).findings
    assert (detection.outcome, denoising.outcome) == (Outcome.PASSED, Outcome.PASSED)
    assert detection.p_value is not None
    assert set(detection.p_values) == set(SHIFTS)
    detection, denoising = ask(engine, case, rate=detection.p_value, grey_p=1.0).findings
    assert (detection.outcome, detection.reason) == (Outcome.FAILED, GatewayReason.SUSPECT)
    assert "below the grey zone" in denoising.detail


def test_in_the_grey_zone_the_readings_are_compared(engine: LocalEngine, case: Case, artefact: Artefact) -> None:
    seen = ask(engine, case, rate=1e-9, grey_p=1.0)
    denoised = artefact.denoisers["median"](torch.from_numpy(noise(11)))
    raw, after = (artefact.ensemble.probe.observe(x, Needs()).decision for x in (torch.from_numpy(noise(11)), denoised))
    assert seen.findings[1].outcome is (Outcome.PASSED if torch.equal(raw, after) else Outcome.FAILED)


def test_what_the_engine_cannot_answer_is_indeterminate(model: ProtectedModel, case: Case) -> None:
    engine = LocalEngine([model], settings(queue_max=1, batch_size_max=1), Metrics())
    with engine:
        pid = engine.worker_pid
        assert pid is not None
        not_finite = replace(case, image=Image(np.full((1, 1, SIDE, SIDE), np.nan, np.float32), "tiny"))
        reasons = [ask(engine, not_finite, rate=0.1, grey_p=0.2).findings]
        os.kill(pid, signal.SIGSTOP)
        reasons.append(ask(engine, case, rate=0.1, grey_p=0.2, deadline=Deadline.after(0.2)).findings)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(ask, engine, case, rate=0.1, grey_p=0.2)
            until(lambda: engine._process is not None and len(engine._process.sent) == 2)
            with pytest.raises(Abandoned):  # the worker never sees it, and nothing is held for it
                ask(engine, case, rate=0.1, grey_p=0.2, deadline=Deadline.after(0.2))
            engine.submit(case.image or Image(noise(1), "tiny"), soon(), None)
            with pytest.raises(Overloaded):
                ask(engine, case, rate=0.1, grey_p=0.2)
            os.kill(pid, signal.SIGKILL)
            reasons.append(waiting.result(60).findings)
    reasons.append(ask(engine, case, rate=0.1, grey_p=0.2).findings)
    of = GatewayReason
    assert [[(finding.outcome, finding.reason) for finding in findings] for findings in reasons] == [
        [(Outcome.INDETERMINATE, reason)] for reason in (of.DETECTOR_ERROR, of.TIMEOUT, of.WORKER_LOST, of.WORKER_LOST)
    ]


def _maps() -> int:
    return Path("/proc/self/maps").read_text().count("scanward-images")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False
