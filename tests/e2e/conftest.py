"""A real gateway process with a small model behind it, for tests that go all the way."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pydicom.data import get_testdata_file

from detectors.artifact import Artefact
from detectors.calibration import ConformalCalibration, ParetoTail, TailCalibration
from detectors.denoisers.median import Median
from detectors.ensemble import SENSITIVE, Channel, Ensemble, Member
from detectors.methods.shifts import PredictionShift
from detectors.models.outputs import Activation
from detectors.models.reference import Reference
from detectors.neighbours.squeezing import MedianShift
from detectors.observation import Span
from detectors.probe import Probe
from gateway.pixels.imaging import Rendering, render
from gateway.profile import Profile
from gateway.protected import MANIFEST_ENVELOPE, MANIFEST_TYPE
from gateway.testing import GatewayProcess, Site, write_signing_key
from signing import VerifiedView, envelope, read
from site_tables import SMALL, route

SHARED = Path(os.environ.get("SCANWARD_SHARED", Path(__file__).parents[3] / "shared"))
CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
ROWS = COLUMNS = 64
FALSE_POSITIVE_RATE = 0.01
CALIBRATION_SCANS = 320

PROFILE = f"""
name = "small"
version = "1"
task = "multiclass"
classes = ["dark", "bright"]
[input]
name = "image"
layout = "NCHW"
channels = 1
size = [{ROWS}, {COLUMNS}]
range = [0.0, 1.0]
[[window]]
modality = "CT"
center = 40.0
width = 400.0
"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site with the route `ct`, whose model tells dark from bright images."""
    site = Site.make(
        tmp_path_factory.mktemp("e2e"), tables=SMALL + route("ct", grey_p=0.05, studies=True), routes=["ct"]
    )
    write_small_model(site.directory / "small")
    return site


@pytest.fixture(scope="session")
def gateway(site: Site) -> Iterator[GatewayProcess]:
    with GatewayProcess(site.config, environment={"OMP_NUM_THREADS": "2"}) as process:
        yield process


@pytest.fixture(scope="session")
def served_elsewhere(site: Site) -> Callable[[str, str], Path]:
    """Writes a configuration of the site's gateway with a route `remote`, whose model is served at an address."""

    def write(address: str, directory: str) -> Path:
        text = site.config.read_text().replace('directory = "data"', f'directory = "{directory}"')
        route = text[text.index("[routes.ct]") : text.index("[[sources]]")]
        table = (
            f'[models.small.kserve]\naddress = "{address}"\nmodel = "small"\nunsafe_plaintext = true\n'
            "attempt_s_max = 30.0\nattempts_max = 2\nfailures_max = 2\npause_s = 0.5\n"
        )
        added = table + route.replace("routes.ct", "routes.remote").replace('"embedded"', '"kserve"')
        text = text.replace("[[sources]]", added + "[[sources]]", 1).replace('"ct"]', '"ct", "remote"]')
        config = site.directory / f"{directory}.toml"
        config.write_text(text)
        return config

    return write


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real and malformed objects that are not part of the source tree."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs shared data: set SCANWARD_SHARED")
    return SHARED / "data"


def write_small_model(folder: Path) -> None:
    """Model, profile and a signed artefact of one detector, calibrated on noisy copies of one CT slice."""
    folder.mkdir(exist_ok=True)
    model = _model()
    (folder / "model.onnx").write_bytes(model)
    (folder / "profile.toml").write_text(PROFILE)
    profile = Profile.load(folder / "profile.toml")
    ensemble = _ensemble(model, _clean(profile))
    facts = {
        "created": "2026-01-01T00:00:00Z", "scanward": "test", "torch": torch.__version__,
        "model_sha256": hashlib.sha256(model).hexdigest(), "profile_sha256": profile.sha256, "data_sha256": "00" * 32,
        "n_fit": 0, "n_a": CALIBRATION_SCANS, "n_b": CALIBRATION_SCANS, "fpr": FALSE_POSITIVE_RATE,
        "precision": "float32", "gradients": "exact", "conversion_max_abs_diff": 0.0, "measured": {},
    }  # fmt: skip
    manifest = Artefact.write(folder / "detectors", ensemble, {"median": Median()}, facts)
    key = write_signing_key(folder / "artefacts.pem")
    (folder / "detectors" / MANIFEST_ENVELOPE).write_bytes(envelope.seal(manifest, MANIFEST_TYPE, key))


def _clean(profile: Profile) -> torch.Tensor:
    """(CALIBRATION_SCANS, 1, ROWS, COLUMNS): the slice itself, with the noise of other exposures."""
    elements = read(CT)
    view = VerifiedView.of_unsigned(elements)
    pixels = elements.get(0x7FE00010)
    assert pixels is not None
    stored = np.frombuffer(CT[pixels.offset : pixels.offset + pixels.length], "<i2").reshape(1, 128, 128)
    noise = np.random.default_rng(20).normal(0.0, 8.0, (CALIBRATION_SCANS, 128, 128))
    noise[0] = 0.0
    frames = torch.from_numpy((stored + noise).astype(np.float32))
    return render(frames, Rendering.of(view, profile), profile)


def _ensemble(model: bytes, clean: torch.Tensor) -> Ensemble:
    reference = Reference.from_onnx(model).eval()
    span = Span((0.0,), (1.0,))
    size = (ROWS, COLUMNS)
    probe = Probe(reference, {}, reference.tap_names, activation=Activation.NONE, span=span, size=size)
    detector = PredictionShift(MedianShift())
    with torch.no_grad():
        scores = detector.score(probe.observe(clean, detector.needs)).values
        tail = TailCalibration.fit(scores)
        own = ConformalCalibration.fit(scores, FALSE_POSITIVE_RATE)
        member = Member(detector, tail, own, SENSITIVE)
        channel = Channel(SENSITIVE, 1.0, ParetoTail.fit(tail.surprise(scores)))
        joined = ConformalCalibration.fit(channel.tail.surprise(tail.surprise(scores)), FALSE_POSITIVE_RATE)
    return Ensemble(probe, [member], [channel], joined)


def _model() -> bytes:
    """A convolution, a mean and a line: the mean grey of the image decides."""
    generator = np.random.default_rng(7)
    weights = {
        "kernel": generator.normal(0.1, 0.2, (4, 1, 3, 3)).astype(np.float32),
        "matrix": np.array([[-1, 1]] * 4, np.float32),
        "bias": np.array([0.3, -0.3], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["edges"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["edges"], ["active"]),
        helper.make_node("GlobalAveragePool", ["active"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix", "bias"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, ROWS, COLUMNS])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 9
    onnx.checker.check_model(proto)
    serialised: bytes = proto.SerializeToString()
    return serialised
