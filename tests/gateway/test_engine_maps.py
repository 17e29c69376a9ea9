"""The bundled model's worker draws maps while it has nothing else to do, and hands on how loud a scan is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from detectors.artifact import Artefact
from detectors.calibration import Guarantee, smallest
from detectors.heat import drawn
from gateway.case import Image
from gateway.deadline import Deadline
from gateway.engine.engine import ExaminationError, ExpiredError
from gateway.engine.local import LocalEngine
from gateway.errors import Overloaded
from gateway.profile import Profile
from gateway.protected import ProtectedModel
from gateway.settings.models import EngineConfig
from gateway.store.drift import Calibrated
from gateway.telemetry.metrics import Metrics

PHANTOM = Path(__file__).parents[2] / "lab" / "assets" / "phantom"
SETTINGS = EngineConfig(device="cpu", batch_size_max=2, batch_wait_ms_max=1.0, queue_max=8, threads=1)


def noise(seed: int, frames: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((frames, 1, 128, 128), np.float32)


@pytest.fixture(scope="module")
def model() -> ProtectedModel:
    manifest = (PHANTOM / "detectors" / "manifest.json").read_bytes()
    profile, onnx = Profile.load(PHANTOM / "profile.toml"), (PHANTOM / "model.onnx").read_bytes()
    return ProtectedModel(
        "phantom", profile, onnx, PHANTOM / "detectors", manifest, "confident", 0.01, 0.0025, frozenset()
    )


@pytest.fixture(scope="module")
def artefact(model: ProtectedModel) -> Artefact:
    """The same artefact in this process: what the worker must agree with."""
    return Artefact.load(model.artefact, model.manifest, model.onnx, model.profile.sha256, torch.device("cpu"))


@pytest.fixture(scope="module")
def engine(model: ProtectedModel) -> Iterator[LocalEngine]:
    with LocalEngine([model], SETTINGS, Metrics()) as engine:
        yield engine


def soon() -> Deadline:
    return Deadline.after(60.0)


def test_beyond_all_clean_scans_the_p_value_goes_on_and_reaches_the_gateway(
    engine: LocalEngine, artefact: Artefact
) -> None:
    """Two scans louder than every calibrated one would have the same rank; a study must tell them apart."""
    pixels = noise(13, 3).round()
    seen = artefact.ensemble.examine(torch.from_numpy(pixels))
    alone = engine.submit(Image(pixels[:1], "phantom"), soon(), None).result(60)
    series = engine.submit(Image(pixels, "phantom"), soon(), None).result(60)
    assert alone.p_value == pytest.approx(float(seen.p_value[0]), rel=1e-2)
    assert series.p_value == pytest.approx(3 * float(seen.p_value.min()), rel=1e-2)
    assert series.statistic == pytest.approx(float(seen.statistic.max()), rel=1e-3)
    least = smallest(int(artefact.manifest["n_b"]), Guarantee.CONFIDENT)
    assert alone.p_value < least
    assert min(alone.p_values.values()) == pytest.approx(least)  # a detector alone has its rank


def test_ranks_flag_series_of_four_frames_at_most(model: ProtectedModel) -> None:
    """1,200 clean scans and 1 %: a fifth frame would need less than the smallest rank."""
    assert Calibrated.of(model, 1000.0).frames_max == 4


def test_a_map_is_of_the_loudest_frame(engine: LocalEngine, artefact: Artefact) -> None:
    pixels = noise(14, 3)
    loudest = int(artefact.ensemble.examine(torch.from_numpy(pixels)).statistic.argmax())
    heat = engine.explain(Image(pixels, "phantom"), soon()).result(60)
    chosen = torch.from_numpy(pixels[loudest : loudest + 1])
    assert heat.frame == loudest
    expected = drawn(artefact.ensemble.probe, chosen, artefact.denoisers)[0].numpy()
    assert heat.usual == artefact.manifest.get("heat_usual")
    np.testing.assert_allclose(heat.values, expected, atol=1e-2 * expected.max())
    assert heat.values.max() > 0


def test_an_image_that_cannot_be_explained_is_an_error_of_its_own(engine: LocalEngine) -> None:
    bad = engine.explain(Image(np.full((1, 1, 128, 128), np.nan, np.float32), "phantom"), soon())
    with pytest.raises(ExaminationError, match="InputError"):
        bad.result(60)
    assert 0 < engine.submit(Image(noise(1), "phantom"), soon(), None).result(60).p_value <= 1


def test_maps_wait_until_no_scan_does_and_not_without_bound(model: ProtectedModel) -> None:
    engine = LocalEngine([model], SETTINGS, Metrics())  # not started: nothing is served yet
    image = Image(noise(1), "phantom")
    gone = engine.explain(image, Deadline.after(0.0))
    scan = engine.submit(image, soon(), None)
    maps = [engine.explain(image, soon()) for _ in range(15)]
    with pytest.raises(Overloaded, match="wait to be explained"):
        engine.explain(image, soon())
    done: list[str] = []
    scan.add_done_callback(lambda _: done.append("scan"))
    maps[0].add_done_callback(lambda _: done.append("map"))
    with engine:
        assert all(each.result(60).frame == 0 for each in maps)
    assert done == ["scan", "map"]
    assert isinstance(gone.exception(60), ExpiredError)
