"""The embedded model answers for what was admitted and for nothing else, and refuses to start on what it is not."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from gateway.case import Case, Evidence, Image
from gateway.deadline import Deadline
from gateway.errors import ConfigError, UpstreamError
from gateway.profile import Profile
from gateway.telemetry.metrics import Metrics
from gateway.upstreams.embedded import EmbeddedUpstream
from gateway.verdict import Disposition, Verdict

ADMIT = Verdict(Disposition.ADMIT, ())
DENOISED = Verdict(Disposition.ADMIT_DENOISED, ())
PIXELS = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2) / 8
SOON = Deadline.after(3600.0)


def model(*, batch: int | str = "n", change: Callable[[onnx.ModelProto], None] = lambda _: None) -> bytes:
    """Two classes: the sum of the four pixels, and its opposite."""
    signs = np.array([[1, -1]] * 4, np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "signs"], ["logits"]),
            helper.make_node("Neg", ["logits"], ["opposite"]),
        ],
        "sums",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, 2, 2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 2]) for name in ("logits", "opposite")],
        [numpy_helper.from_array(signs, "signs")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    change(made)
    return made.SerializeToString()


def profile(
    task: str = "multiclass",
    classes: str = '["a", "b"]',
    size: str = "[2, 2]",
    output: str = "",
    name: str = "image",
) -> Profile:
    return Profile.from_toml(
        f'name="sums"\nversion="7"\ntask="{task}"\nclasses={classes}\n'
        f'[input]\nname="{name}"\nlayout="NCHW"\nchannels=1\nsize={size}\nrange=[0,1]\n{output}'.encode()
    )


def upstream(
    data: bytes | None = None, used: Profile | None = None, metrics: Metrics | None = None
) -> EmbeddedUpstream:
    return EmbeddedUpstream(
        "sums", used or profile(), data or model(), device="cpu", threads=1, metrics=metrics or Metrics()
    )


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(logits)
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


@pytest.fixture
def case(make_case: Callable[..., Case]) -> Case:
    evidence = Evidence(1.0, 0.02, {}, {}, np.zeros(2, np.float32), {}, 2 * PIXELS)
    return replace(make_case(), image=Image(PIXELS, "sums"), evidence=evidence)


@pytest.mark.parametrize("batch", ["n", 1])
@pytest.mark.parametrize(("verdict", "pixels"), [(ADMIT, PIXELS), (DENOISED, 2 * PIXELS)], ids=["admit", "denoised"])
def test_asks_about_what_was_admitted(
    batch: int | str, verdict: Verdict, pixels: NDArray[np.float32], case: Case
) -> None:
    """The scores of a series are the mean of its frames' probabilities."""
    sums = pixels.sum(axis=(1, 2, 3))
    expected = softmax(np.stack([sums, -sums], axis=1)).mean(axis=0)
    answer = upstream(model(batch=batch)).predict(case, verdict, SOON)
    np.testing.assert_allclose(answer.scores, expected, rtol=1e-5)
    assert (answer.model, answer.version, answer.classes, answer.label) == ("sums", "7", ("a", "b"), "a")


@pytest.mark.parametrize(
    ("task", "output", "expected"),
    [
        ("multilabel", "", lambda logits: 1 / (1 + np.exp(-logits))),
        ("multiclass", '[output]\nactivation = "none"\n', lambda logits: logits),
        ("multiclass", '[output]\nname = "opposite"\n', lambda logits: softmax(-logits)),
    ],
)
def test_applies_what_the_profile_says(task: str, output: str, expected: Callable[[Any], Any], case: Case) -> None:
    sums = PIXELS[:1].sum()
    one = replace(case, image=Image(PIXELS[:1], "sums"))
    answer = upstream(used=profile(task, output=output)).predict(one, ADMIT, SOON)
    np.testing.assert_allclose(answer.scores, expected(np.array([sums, -sums])), rtol=1e-5)


def test_calls_at_once_each_get_their_own_answer(case: Case) -> None:
    served = upstream()

    def ask(number: int) -> tuple[float, ...]:
        pixels = np.full((1, 1, 2, 2), number / 100, np.float32)
        return served.predict(replace(case, image=Image(pixels, "sums")), ADMIT, SOON).scores

    with ThreadPoolExecutor(8) as callers:
        together = list(callers.map(ask, range(400)))

    assert together == [ask(number) for number in range(400)]


@pytest.mark.parametrize("disposition", [Disposition.QUARANTINE, Disposition.REJECT])
def test_never_asks_about_what_was_not_admitted(disposition: Disposition, case: Case) -> None:
    with pytest.raises(UpstreamError):
        upstream().predict(case, Verdict(disposition, ()), SOON)


def test_never_puts_the_raw_image_in_the_place_of_the_denoised(case: Case) -> None:
    with pytest.raises(UpstreamError):
        upstream().predict(replace(case, evidence=None), DENOISED, SOON)


def test_times_every_answer_and_every_failure(case: Case) -> None:
    metrics = Metrics()
    asked = upstream(metrics=metrics)
    asked.predict(case, ADMIT, SOON)
    with pytest.raises(UpstreamError):
        asked.predict(case, ADMIT, Deadline.after(0.0))
    not_finite = replace(case, image=Image(np.full((1, 1, 2, 2), np.nan, np.float32), "sums"))
    with pytest.raises(UpstreamError, match="not finite"):
        asked.predict(not_finite, ADMIT, SOON)
    wrong_shape = replace(case, image=Image(np.zeros((1, 1, 3, 3), np.float32), "sums"))
    with pytest.raises(UpstreamError):
        asked.predict(wrong_shape, ADMIT, SOON)
    counts = [
        metrics.registry.get_sample_value("scanward_upstream_seconds_count", {"upstream": "sums", "outcome": outcome})
        for outcome in ("ok", "timeout", "error")
    ]
    assert counts == [1, 1, 2]


def _external(made: onnx.ModelProto) -> None:
    onnx.external_data_helper.set_external_data(made.graph.initializer[0], "elsewhere.bin")


def _external_in_a_constant(made: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(2, np.float32), "hidden")
    onnx.external_data_helper.set_external_data(tensor, "elsewhere.bin")
    made.graph.node.append(helper.make_node("Constant", [], ["unused"], value=tensor))


def _custom(made: onnx.ModelProto) -> None:
    made.graph.node[0].domain = "com.example"
    made.opset_import.append(helper.make_opsetid("com.example", 1))


@pytest.mark.parametrize(
    ("data", "used", "words"),
    [
        (b"not a model at all", profile(), "not an ONNX file"),
        (b"", profile(), "onnxruntime|ONNX"),
        (model(change=_external), profile(), "outside the file"),
        (model(change=_external_in_a_constant), profile(), "outside the file"),
        (model(change=_custom), profile(), "custom operator"),
        (model(batch=4), profile(), "4 images at a time"),
        (model(), profile(classes='["a", "b", "c"]'), "classes"),
        (model(), profile(size="[3, 3]"), "blank image"),
        (model(), profile(output='[output]\nname = "absent"\n'), "no output"),
        (model(), profile("segmentation"), "segmentation"),
        (model(), profile(name="pixels"), "input.name"),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_at_the_start(data: bytes, used: Profile, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        EmbeddedUpstream("sums", used, data, device="cpu", threads=1, metrics=Metrics())


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime itself falls back to the CPU without a word."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"engine\.device"):
        EmbeddedUpstream("sums", profile(), model(), device="cuda", threads=1, metrics=Metrics())
