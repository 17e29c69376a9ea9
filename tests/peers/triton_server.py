"""A real Triton server, the one that nvidia-pytriton carries, with one ONNX model behind its Python backend."""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

MODEL, GRPC_PORT, HTTP_PORT, METRICS_PORT = sys.argv[1], *map(int, sys.argv[2:5])


def main() -> None:
    """Serve until killed."""
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    given, given_out = session.get_inputs()[0], session.get_outputs()[0]

    @batch
    def infer(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        return {given_out.name: session.run(None, inputs)[0]}

    config = TritonConfig(grpc_address="127.0.0.1", grpc_port=GRPC_PORT, http_port=HTTP_PORT, metrics_port=METRICS_PORT)
    with Triton(config=config) as triton:
        triton.bind(
            "small",
            infer,
            inputs=[Tensor(name=given.name, dtype=np.float32, shape=tuple(given.shape[1:]))],
            outputs=[Tensor(name=given_out.name, dtype=np.float32, shape=tuple(given_out.shape[1:]))],
            config=ModelConfig(max_batch_size=16),
        )
        triton.serve()


if __name__ == "__main__":
    main()
