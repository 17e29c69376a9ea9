"""Random detectors draw from a secret and the scan: the same bytes always alike, other bytes always anew."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from detectors.artifact import Artefact
from detectors.neighbours.noise import Noise
from gateway.app.plan import Plan
from gateway.case import Case, Digests, Image
from gateway.deadline import Deadline
from gateway.engine.engine import ExaminationError
from gateway.engine.local import LocalEngine
from gateway.errors import ConfigError
from gateway.finding import GatewayReason, Outcome
from gateway.protected import ProtectedModel
from gateway.settings.config import Config
from gateway.settings.models import EngineConfig
from gateway.stages.detection import DetectionStage
from gateway.stages.seeds import seeds_of
from gateway.telemetry.metrics import Metrics
from gateway.testing import Site
from tiny import PROFILE, PROFILE_TEXT, noise, onnx_model, protected

KEY, ARTEFACT, SCAN = b"k" * 32, "ab" * 32, "cd" * 32
DRAWING = "noise6_0"
SETTINGS = EngineConfig(device="cpu", batch_size_max=8, batch_wait_ms_max=20.0, queue_max=64, threads=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ProtectedModel:
    return protected(tmp_path_factory.mktemp("artefact"), (Noise(6.0),))


@pytest.fixture(scope="module")
def engine(model: ProtectedModel) -> Iterator[LocalEngine]:
    with LocalEngine([model], SETTINGS, Metrics()) as engine:
        yield engine


def soon() -> Deadline:
    return Deadline.after(60.0)


def test_a_seed_is_the_hmac_of_artefact_and_scan_stretched_to_every_frame() -> None:
    mac = hmac.new(KEY, bytes.fromhex(ARTEFACT + SCAN), hashlib.sha256).digest()
    stretched = hashlib.shake_256(mac).digest(24)
    frames = [int.from_bytes(stretched[start : start + 8], "big", signed=True) for start in (0, 8, 16)]

    assert seeds_of(KEY, ARTEFACT, SCAN, 3) == tuple(frames)
    assert len(set(frames)) == 3


@pytest.mark.parametrize("changed", [(b"l" * 32, ARTEFACT, SCAN), (KEY, "ac" * 32, SCAN), (KEY, ARTEFACT, "ce" * 32)])
def test_another_key_artefact_or_scan_is_another_seed(changed: tuple[bytes, str, str]) -> None:
    assert seeds_of(*changed, 1) != seeds_of(KEY, ARTEFACT, SCAN, 1)


@pytest.fixture
def case(make_case: Callable[..., Case], model: ProtectedModel) -> Callable[[bytes], Case]:
    """A scan of some bytes; its pixels are always the same."""
    digests = Digests(model.model_sha256, PROFILE.sha256, model.artefact_sha256, "", "")
    return lambda data: replace(make_case(data, findings=()), image=Image(noise(11), "tiny"), digests=digests)


def score(engine: LocalEngine, case: Case, *, key: bytes | None = KEY) -> float:
    stage = DetectionStage(engine, false_positive_rate=1e-9, grey_p=None, seed_key=key)
    evidence = stage.run(case, soon()).evidence
    assert evidence is not None
    return evidence.scores[DRAWING]


def test_the_same_bytes_draw_alike_however_often_they_are_sent(
    engine: LocalEngine, case: Callable[[bytes], Case]
) -> None:
    alone = score(engine, case(b"one"))
    with ThreadPoolExecutor(8) as threads:  # in company, in batches of any size
        again = list(threads.map(lambda number: score(engine, case(b"one" if number % 2 else b"two")), range(16)))

    assert again[1::2] == pytest.approx([alone] * 8, abs=1e-5)
    assert again[::2] == pytest.approx([again[0]] * 8, abs=1e-5)
    assert abs(again[0] - alone) > 1e-3
    assert abs(score(engine, case(b"one"), key=b"l" * 32) - alone) > 1e-3


def test_the_worker_draws_as_the_ensemble_does(engine: LocalEngine, model: ProtectedModel) -> None:
    ensemble = Artefact.load(model.artefact, model.manifest, model.onnx, PROFILE.sha256, torch.device("cpu")).ensemble
    pixels = np.repeat(noise(3), 2, axis=0)
    seeds = seeds_of(KEY, ARTEFACT, SCAN, 2)

    evidence = engine.submit(Image(pixels, "tiny"), soon(), None, "", seeds).result(60)

    frames = ensemble.examine(torch.from_numpy(pixels), torch.tensor(seeds)).scores[DRAWING]
    assert abs(float(frames[0] - frames[1])) > 1e-3  # each frame has a draw of its own
    assert evidence.scores[DRAWING] == pytest.approx(float(frames.max()), abs=1e-5)


def test_without_seeds_a_random_detector_fails_and_is_no_pass(
    engine: LocalEngine, case: Callable[[bytes], Case]
) -> None:
    with pytest.raises(ExaminationError):
        engine.submit(Image(noise(1), "tiny"), soon(), None).result(60)
    found = DetectionStage(engine, false_positive_rate=0.1, grey_p=None).run(case(b"one"), soon()).findings[-1]
    assert (found.outcome, found.reason) == (Outcome.INDETERMINATE, GatewayReason.DETECTOR_ERROR)
    with pytest.raises(ValueError, match="2 seeds for 1 frames"):
        engine.submit(Image(noise(1), "tiny"), soon(), None, "", (1, 2))


TABLES = """
[trust.artefacts]
public_keys = []
unsafe_unsigned_artefacts = true
unsafe_marginal_guarantee = true
[engine]
device = "cpu"
batch_size_max = 2
batch_wait_ms_max = 1.0
queue_max = 8
threads = 1
[models.tiny]
profile = "profile.toml"
model = "model.onnx"
detectors = "artefact"
[routes.tiny]
trust = "open"
model = "tiny"
upstream = "embedded"
[routes.tiny.policy]
indeterminate = "quarantine"
unexaminable = "quarantine"
signature = { failed = "reject", unsigned = "unsafe_admit", stripped = "reject" }
detection = { false_positive_rate = 0.1, suspect = "quarantine", denoise = "never" }
"""


@pytest.mark.parametrize("trouble", ["missing", "short", "shared", "open to others"])
def test_the_seed_key_is_asked_for_by_name(trouble: str, tmp_path: Path) -> None:
    site = Site.make(tmp_path, tables=TABLES, routes=["tiny"])
    (tmp_path / "profile.toml").write_bytes(PROFILE_TEXT)
    (tmp_path / "model.onnx").write_bytes(onnx_model())
    protected(tmp_path / "artefact", (Noise(6.0),))
    assert Plan.of(Config.load(site.config)).keys.seed is not None

    seed = tmp_path / "keys" / "seed.key"
    if trouble == "missing":
        site.config.write_text(site.config.read_text().replace('seed = "keys/seed.key"\n', ""))
    elif trouble == "short":
        seed.write_text("abc")
    elif trouble == "shared":
        seed.write_bytes((tmp_path / "keys" / "quarantine.key").read_bytes())
    else:
        seed.chmod(0o644)
    with pytest.raises(ConfigError, match=r"keys\.seed: ") as caught:
        Plan.of(Config.load(site.config))

    assert all(problem.startswith("keys.seed: ") for problem in caught.value.problems)
    if trouble == "missing":
        assert "models.tiny draw at random" in str(caught.value)


def test_the_seed_key_is_in_no_text_of_the_keys(tmp_path: Path) -> None:
    keys = Plan.of(Config.load(Site.make(tmp_path).config)).keys

    assert keys.seed is not None
    assert repr(keys.seed) not in repr(keys)
    assert keys.quarantine.derive(b"")  # it is there
    assert "RawKek()" in repr(keys)
