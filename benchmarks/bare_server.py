"""The least that could answer: receives a slice, hashes it, runs the model on its pixels; protects nothing."""

from __future__ import annotations

import argparse
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc

_ROWS = _COLUMNS = 512
_MESSAGE_BYTES_MAX = 16 << 20


class Bare(rpc.ProtectionGatewayServicer):
    """Answers with the hash and, where there is a model, its scores; never looks at anything."""

    def __init__(self, model: Path | None) -> None:
        self._session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]) if model else None

    def Protect(self, request: pb.ProtectRequest, context: grpc.ServicerContext) -> pb.ProtectReply:  # noqa: N802
        """Hash, and run the model."""
        reply = pb.ProtectReply(scan_sha256=hashlib.sha256(request.dicom).hexdigest())
        if self._session is not None:
            taken = self._session.get_inputs()[0]
            (scores,) = self._session.run(None, {taken.name: _pixels(request.dicom, taken.shape[-2:])})[:1]
            reply.prediction.scores.extend(pb.ClassScore(score=float(score)) for score in scores[0])
        return reply


def _pixels(dicom: bytes, size: list[int]) -> NDArray[np.float32]:
    """(1, 1, rows, columns): every nth stored value of a native 512 x 512 slice, in [0, 1]."""
    stored = np.frombuffer(dicom, "<u2", count=_ROWS * _COLUMNS, offset=len(dicom) - 2 * _ROWS * _COLUMNS)
    grid = stored.reshape(_ROWS, _COLUMNS)[:: _ROWS // size[0], :: _COLUMNS // size[1]]
    return (grid.astype(np.float32) / 4095.0)[None, None]


def main() -> None:
    """Serve on a free port, and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--threads", type=int, default=16)
    arguments = parser.parse_args()
    options = [("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX)]
    server = grpc.server(ThreadPoolExecutor(arguments.threads), options=options)
    rpc.add_ProtectionGatewayServicer_to_server(Bare(arguments.model), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
