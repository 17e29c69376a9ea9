"""Tensors of the Open Inference Protocol: what is written is read back, and what breaks the rules is a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.api.kserve.v2 import inference_pb2 as pb
from gateway.open_inference import (
    TensorError,
    add_floats,
    add_texts,
    infer_request,
    inputs_of,
    outputs_of,
)

VALUES = np.arange(8, dtype=np.float32).reshape(2, 1, 2, 2) / 8


def given_raw(datatype: str, shape: list[int], raw: bytes) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(raw_input_contents=[raw])
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    return request


def test_a_request_reads_back_as_it_was_written() -> None:
    request = infer_request("chest", "7", "image", VALUES, identity="abc", output="logits")
    assert (request.model_name, request.model_version, request.id, request.outputs[0].name) == (
        "chest", "7", "abc", "logits",
    )  # fmt: skip
    np.testing.assert_array_equal(inputs_of(request)["image"].floats(), VALUES)


def test_an_answer_reads_back_as_it_was_written() -> None:
    response = pb.ModelInferResponse()
    add_floats(response, "scores", VALUES)
    add_texts(response, "label", ["Lungenödem", ""])
    found = outputs_of(response)
    np.testing.assert_array_equal(found["scores"].floats(), VALUES)
    assert found["label"].elements() == ["Lungenödem".encode(), b""]


@pytest.mark.parametrize(("datatype", "numpy"), [("FP16", "<f2"), ("FP32", "<f4"), ("FP64", "<f8")])
def test_every_floating_type_is_read_raw(datatype: str, numpy: str) -> None:
    request = given_raw(datatype, [2, 1, 2, 2], VALUES.astype(numpy).tobytes())
    np.testing.assert_array_equal(inputs_of(request)["x"].floats(), VALUES)


@pytest.mark.parametrize("key", ["fp32_contents", "fp64_contents"])
def test_floats_are_read_typed(key: str) -> None:
    request = pb.ModelInferRequest()
    tensor = request.inputs.add(name="x", datatype="FP32", shape=VALUES.shape)
    getattr(tensor.contents, key).extend(VALUES.ravel().tolist())
    np.testing.assert_array_equal(inputs_of(request)["x"].floats(), VALUES)


def test_an_empty_typed_content_beside_a_raw_one_says_nothing() -> None:
    """MLServer answers so."""
    response = pb.ModelInferResponse()
    add_floats(response, "scores", VALUES)
    response.outputs[0].contents.SetInParent()
    np.testing.assert_array_equal(outputs_of(response)["scores"].floats(), VALUES)


@pytest.mark.parametrize(
    ("request_", "read", "sentence"),
    [
        (given_raw("INT8", [1], b"1"), lambda x: x.floats(), "floating point is wanted"),
        (given_raw("FP32", [1], b"12345"), lambda x: x.floats(), "5 bytes are no whole number of FP32"),
        (given_raw("FP32", [3], bytes(8)), lambda x: x.floats(), "2 elements for a shape of 3"),
        (given_raw("FP32", [1 << 62, 1 << 62], b""), lambda x: x.floats(), "0 elements for a shape of"),
        (given_raw("FP32", [1], bytes(4)), lambda x: x.elements(), "BYTES is wanted"),
        (given_raw("BYTES", [1], b"\xff\xff\xff\xff"), lambda x: x.elements(), "ends within an element"),
        (given_raw("BYTES", [1], b"\1\0"), lambda x: x.elements(), "ends within the length of an element"),
    ],
)
def test_content_that_is_not_what_it_says(
    request_: pb.ModelInferRequest, read: Callable[[object], object], sentence: str
) -> None:
    with pytest.raises(TensorError, match=sentence):
        read(inputs_of(request_)["x"])


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (given_raw("FP32", [-1], b""), "none below 0"),
        (given_raw("FP32", [1] * 9, bytes(4)), "up to 8 lengths"),
        (pb.ModelInferRequest(raw_input_contents=[b""]), "1 raw contents for 0 tensors"),
    ],
)
def test_a_message_that_does_not_hold_together(request_: pb.ModelInferRequest, sentence: str) -> None:
    with pytest.raises(TensorError, match=sentence):
        inputs_of(request_)


@pytest.mark.parametrize("name", ["x" * 129, "a\nb", "\x1b[2J"])
def test_a_name_that_would_spoil_a_log_is_refused(name: str) -> None:
    request = given_raw("FP32", [1], bytes(4))
    request.inputs[0].name = name
    with pytest.raises(TensorError, match="printable characters"):
        inputs_of(request)


@given(
    st.binary(max_size=64), st.lists(st.integers(-2, 9), max_size=4), st.sampled_from(["BYTES", "FP16", "FP32", "X"])
)
def test_any_bytes_are_a_tensor_or_a_sentence(raw: bytes, shape: list[int], datatype: str) -> None:
    try:
        tensor = inputs_of(given_raw(datatype, shape, raw))["x"]
        found = len(tensor.elements()) if datatype == "BYTES" else tensor.floats().size
    except TensorError:
        return
    assert found == math.prod(shape)
