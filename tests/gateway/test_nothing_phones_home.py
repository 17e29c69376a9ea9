"""No library tells its maker that it is used: onnxruntime would, and keeps a device identifier for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODEL = """
from onnx import TensorProto, helper
value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "small", value[:1], value[1:])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
import onnxruntime
onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
"""


@pytest.mark.parametrize("room", ["gateway", "detectors"])
def test_a_model_leaves_no_trace_of_its_use(room: str, tmp_path: Path) -> None:
    """Where it may report, it first writes an identifier and a queue of events under the home directory."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "ORT_"))}
    command = [sys.executable, "-c", f"import {room}{MODEL}"]

    subprocess.run(command, env={**environment, "HOME": str(tmp_path)}, check=True, timeout=120)

    assert list(tmp_path.rglob("*")) == []
