"""Each operator of the table computes what onnxruntime computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from detectors.models.reference import Reference


@dataclass(frozen=True)
class Case:
    """One node from `x` to `y`, with more inputs as initializers."""

    operator: str
    attributes: dict[str, Any] = field(default_factory=dict)
    more: tuple[Any, ...] = ()
    """Arrays, lists of integers, single numbers, or None where an optional input is absent."""
    opset: int = 18
    shape: tuple[int, ...] = (2, 4, 6, 8)
    first: bool = False
    """Whether `x` stands behind the other inputs."""

    def __str__(self) -> str:
        told = ",".join(f"{key}={value}" for key, value in self.attributes.items())
        return f"{self.operator}-{self.opset}-{told}".replace(" ", "")


def real(*shape: int, seed: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


W = real(4, 4, 3, 3)
CASES = [
    *(Case(name) for name in (
        "Relu", "Sigmoid", "Tanh", "Exp", "Neg", "Abs", "Erf", "Reciprocal", "Floor", "Ceil", "Round", "Sign", "Sin",
        "Cos", "Softplus", "Softsign", "Mish", "HardSwish", "Selu", "Celu", "Elu", "LeakyRelu", "HardSigmoid",
        "GlobalAveragePool", "GlobalMaxPool", "Identity", "Transpose", "Flatten", "Size", "Shape", "LpNormalization",
        "IsNaN", "ArgMax", "Dropout",
    )),
    Case("Sqrt", opset=17, shape=(0, 3)), Case("Gelu", opset=20), Case("Gelu", {"approximate": "tanh"}, opset=20),
    Case("Selu", {"alpha": 1.2, "gamma": 0.9}), Case("Celu", {"alpha": 2.0}), Case("Elu", {"alpha": 0.5}),
    Case("LeakyRelu", {"alpha": 0.2}), Case("PRelu", more=(real(4, 1, 1),)), Case("Clip", more=(-0.5, None)),
    Case("Clip", more=(None, 0.5)), Case("Softmax", {"axis": 1}), Case("Softmax", opset=12), Case("LogSoftmax"),
    Case("Div", more=(real(8),)), Case("Pow", more=(2.0,)), Case("Mod", {"fmod": 1}, more=(real(8),)),
    Case("Sub", more=(real(4, 1, 1),)), Case("Sub", more=(real(4, 1, 1),), first=True), Case("Max", more=(real(8),)),
    Case("Min", more=(real(8), real(6, 1))), Case("Sum", more=(real(8), real(6, 1))), Case("Mean", more=(real(8),)),
    Case("Greater", more=(0.3,)), Case("LessOrEqual", more=(0.3,)), Case("Cast", {"to": TensorProto.INT32}),
    *(Case(name, {"keepdims": keep}, more=([1, -1],)) for keep in (0, 1) for name in (
        "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSumExp",
        "ReduceProd", "ReduceSum",
    )),
    Case("ReduceMean", {"axes": [2, 3]}, opset=13), Case("ReduceSum", {"noop_with_empty_axes": 1}), Case("ReduceSum"),
    Case("ArgMax", {"axis": -1, "keepdims": 0}),
    Case("Gemm", {"alpha": 0.5, "beta": 2.0, "transB": 1}, more=(real(3, 5), real(3)), shape=(2, 5)),
    Case("Gemm", {"transA": 1}, more=(real(2, 3),), shape=(2, 5)), Case("MatMul", more=(real(8, 3),)),
    Case("Einsum", {"equation": "nchw, wk -> nchk"}, more=(real(8, 3),)),
    Case("LayerNormalization", more=(real(8), real(8))), Case("LayerNormalization", {"axis": 1}, more=(real(4, 6, 8),)),
    Case("InstanceNormalization", more=(real(4), real(4))),
    Case("GroupNormalization", {"num_groups": 2}, more=(real(4), real(4)), opset=21),
    Case("LpNormalization", {"p": 1, "axis": 1}),
    Case("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1]}, more=(W, real(4))), Case("Conv", more=(W,)),
    Case("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 3]}, more=(W,)),
    Case("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, more=(W,)),
    Case("Conv", {"auto_pad": "VALID"}, more=(W,)),
    Case("Conv", {"dilations": [2, 2], "pads": [2, 2, 2, 2], "group": 4}, more=(real(4, 1, 3, 3),)),
    Case("Conv", more=(real(5, 4, 3),), shape=(2, 4, 9)),
    Case("Conv", more=(real(5, 4, 1, 2, 2),), shape=(2, 4, 3, 4, 5)),
    Case("ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}, more=(W, real(4))),
    Case("ConvTranspose", {"strides": [2, 2], "pads": [0, 1, 1, 0]}, more=(W,)),
    Case("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [0, 0, 1, 1], "ceil_mode": 1}),
    Case("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    Case("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1], "count_include_pad": 1}),
    Case("Pad", more=([0, 0, 1, 2, 0, 0, 3, 0], 1.5)),
    Case("Pad", {"mode": "reflect"}, more=([0, 0, 1, 2, 0, 0, 3, 0],)),
    Case("Pad", {"mode": "edge"}, more=([0, 0, 1, 2, 0, 0, 3, 0],)), Case("Pad", more=([1, 2, 0, 1], None, [2, -1])),
    *(
        Case("Resize", {"mode": mode, "coordinate_transformation_mode": rule, **rest}, more=(None, None, [2, 4, 9, 5]))
        for mode, rule, rest in (
            ("linear", "half_pixel", {}), ("linear", "pytorch_half_pixel", {}), ("linear", "align_corners", {}),
            ("cubic", "half_pixel", {"cubic_coeff_a": -0.75}), ("nearest", "asymmetric", {"nearest_mode": "floor"}),
        )
    ),
    Case("Resize", {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
         more=(None, real(4) * 0 + np.array([1, 1, 2, 2], np.float32))),
    Case("Resize", {"mode": "linear"}, more=(None, np.array([1, 1, 1.5, 0.5], np.float32))),
    Case("Flatten", {"axis": 2}), Case("Flatten", {"axis": -1}), Case("Reshape", more=([0, -1, 4],)),
    Case("Transpose", {"perm": [0, 2, 3, 1]}), Case("Concat", {"axis": 1}, more=(real(2, 3, 6, 8),)),
    Case("Slice", more=([1, -3], [2**62, -1], [1, 3])), Case("Slice", more=([-1], [-(2**62)], [3], [-2])),
    Case("Slice", more=([0, 1], [6, 7], [2, 3], [2, 3])), Case("Squeeze", more=([1],), shape=(2, 1, 4)),
    Case("Squeeze", shape=(2, 1, 4, 1)), Case("Unsqueeze", more=([0, -1],)), Case("Unsqueeze", {"axes": [1]}, opset=11),
    Case("Gather", {"axis": 1}, more=(np.array([[0, -1], [2, 1]]),)), Case("Gather", {"axis": -1}, more=(np.array(3),)),
    Case("Expand", more=([3, 1, 4, 6, 8],)), Case("Tile", more=([1, 2, 1, 3],)), Case("Shape", {"start": 1, "end": -1}),
    Case("DepthToSpace", {"blocksize": 2}), Case("DepthToSpace", {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", {"blocksize": 2}), Case("Trilu", more=(np.array(1),)), Case("Trilu", {"upper": 0}),
    Case("Split", {"axis": 1}, more=([4],), shape=(2, 4)),
]  # fmt: skip


def model_of(case: Case) -> bytes:
    names = [] if case.first else ["x"]
    initializers = []
    for place, value in enumerate(case.more):
        names.append("" if value is None else f"more{place}")
        if value is not None:
            kind = np.float32 if isinstance(value, float) else np.int64
            array = value if isinstance(value, np.ndarray) else np.asarray(value, kind)
            initializers.append(numpy_helper.from_array(array, f"more{place}"))
    names += ["x"] if case.first else []
    node = helper.make_node(case.operator, names, ["y"], name="only", **case.attributes)
    taken = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *case.shape[1:]])
    graph = helper.make_graph([node], "g", [taken], [helper.make_empty_tensor_value_info("y")], initializers)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", case.opset)], ir_version=9)
    return bytes(made.SerializeToString())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_operator_computes_what_onnxruntime_computes(case: Case) -> None:
    model, images = model_of(case), real(*case.shape, seed=1)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": images})

    actual = Reference.from_onnx(model)(torch.from_numpy(images)).numpy()

    assert actual.shape == expected.shape
    assert np.allclose(actual, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
