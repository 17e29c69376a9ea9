"""A small model with calibrated prediction-shift detectors and one denoiser, as an engine serves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from detectors.artifact import Artefact
from detectors.calibration import ConformalCalibration, ParetoTail, TailCalibration
from detectors.denoisers.median import Median
from detectors.ensemble import Channel, Ensemble, Member
from detectors.methods.shifts import PredictionShift
from detectors.models.outputs import Activation
from detectors.models.reference import Reference
from detectors.observation import Neighbour, Span
from detectors.probe import Probe
from gateway.profile import Profile
from gateway.protected import ProtectedModel
from lab.seeds import seeds_of

SIDE = 16
PROFILE_TEXT = (
    f'name="tiny"\nversion="1"\ntask="multiclass"\nclasses=["a","b"]\n'
    f'[input]\nname="image"\nlayout="NCHW"\nchannels=1\nsize=[{SIDE},{SIDE}]\nrange=[0.0,1.0]\n'
).encode()
PROFILE = Profile.from_toml(PROFILE_TEXT)


def onnx_model() -> bytes:
    """Convolution, ReLU, mean over space, and a linear layer to two classes."""
    random = np.random.default_rng(7)
    weights = {
        "kernel": random.normal(size=(6, 1, 3, 3)),
        "offset": random.normal(size=6) * 0.1,
        "heads": random.normal(size=(6, 2)) * 4,
        "bias": random.normal(size=2),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "kernel", "offset"], ["maps"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["maps"], ["rectified"]),
            helper.make_node("GlobalAveragePool", ["rectified"], ["means"]),
            helper.make_node("Flatten", ["means"], ["flat"]),
            helper.make_node("Gemm", ["flat", "heads", "bias"], ["logits"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def noise(seed: int, frames: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((frames, 1, SIDE, SIDE), np.float32)


def protected(directory: Path, neighbours: Sequence[Neighbour]) -> ProtectedModel:
    """The model, its artefact written into a directory: a detector of each neighbour, and the median as denoiser."""
    model = onnx_model()
    span = Span((0.0,), (1.0,))
    probe = Probe(Reference.from_onnx(model), {}, (), activation=Activation.NONE, span=span, size=(SIDE, SIDE))
    members = [_member(PredictionShift(each), probe) for each in neighbours]
    loud = torch.stack([member.tail.surprise(_scores(member.detector, probe, 2)) for member in members]).amax(0)
    channels = [Channel("sensitive", 1.0, ParetoTail.fit(loud))]
    joined = channels[0].tail.surprise(
        torch.stack([member.tail.surprise(_scores(member.detector, probe, 3)) for member in members]).amax(0)
    )
    ensemble = Ensemble(probe, members, channels, ConformalCalibration.fit(joined, 0.1))
    facts: dict[str, Any] = dict.fromkeys(
        ("created", "scanward", "torch", "data_sha256", "n_fit", "n_a", "n_b", "precision", "gradients", "measured",
         "conversion_max_abs_diff")
    )  # fmt: skip
    whole = ProtectedModel("tiny", PROFILE, model, directory, b"", "confident", 0.1, 0.01, frozenset())
    facts |= {"model_sha256": whole.model_sha256, "profile_sha256": PROFILE.sha256, "fpr": 0.1, "n_b": 60}
    return replace(whole, manifest=Artefact.write(directory, ensemble, {"median": Median()}, facts))


def _scores(detector: PredictionShift, probe: Probe, seed: int) -> torch.Tensor:
    images = torch.from_numpy(noise(seed, 60))
    return detector.score(probe.observe(images, detector.needs, seeds=seeds_of(images))).values


def _member(detector: PredictionShift, probe: Probe) -> Member:
    tail = TailCalibration.fit(_scores(detector, probe, 2))
    return Member(detector, tail, ConformalCalibration.fit(_scores(detector, probe, 3), 0.1), "sensitive")
