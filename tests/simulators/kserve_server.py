"""A model server that speaks the Open Inference Protocol, in a process of its own that a test may kill, stop or fool.

Prints its address once it listens. The journal gets the id of each request that was answered, a line each, written
before the answer leaves.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import onnxruntime

from gateway.api.kserve.v2 import inference_pb2 as pb
from gateway.api.kserve.v2 import inference_pb2_grpc as rpc
from gateway.open_inference import add_floats, inputs_of


class Model(rpc.GRPCInferenceServiceServicer):
    """One ONNX model under one name."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        session = onnxruntime.SessionOptions()
        session.intra_op_num_threads = 1  # more would spin between the questions of a test, and its models are small
        self._session = onnxruntime.InferenceSession(options.model, session, providers=["CPUExecutionProvider"])

    def ServerLive(self, request, context):  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request, context):  # noqa: N802
        return pb.ServerReadyResponse(ready=True)

    def ModelReady(self, request, context):  # noqa: N802
        return pb.ModelReadyResponse(ready=request.name == self._options.name)

    def ModelMetadata(self, request, context):  # noqa: N802
        if request.name != self._options.name:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown model")
        found = pb.ModelMetadataResponse(name=request.name, versions=["1"], platform="onnxruntime")
        for tensors, values in (
            (found.inputs, self._session.get_inputs()),
            (found.outputs, self._session.get_outputs()),
        ):
            for value in values:
                shape = [length if isinstance(length, int) else -1 for length in value.shape]
                tensors.add(name=value.name, datatype="FP32", shape=shape)
        return found

    def ModelInfer(self, request, context):  # noqa: N802
        options = self._options
        if request.model_name != options.name:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown model")
        if options.fail:
            context.abort(grpc.StatusCode[options.fail], "as it was told")
        (name, tensor), *_ = inputs_of(request).items()
        output = self._session.get_outputs()[0].name
        scores = self._session.run([output], {name: tensor.floats()})[0]
        if options.answer == "nan":
            scores = np.full_like(scores, np.nan)
        elif options.answer == "wide":
            scores = np.concatenate([scores, scores], axis=1)
        with options.journal.open("a") as journal:
            journal.write(f"{request.id}\n")
        response = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        add_floats(response, "other" if options.answer == "misnamed" else output, scores)
        return response


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("journal", type=Path)
    parser.add_argument("--name", default="small")
    parser.add_argument("--address", default="127.0.0.1:0")
    parser.add_argument("--answer", choices=["scores", "nan", "wide", "misnamed"], default="scores")
    parser.add_argument("--fail", help="a status, for every request")
    parser.add_argument("--tls", type=Path, nargs=3, help="certificate, key, authority of clients")
    options = parser.parse_args()
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    rpc.add_GRPCInferenceServiceServicer_to_server(Model(options), server)
    if options.tls:
        certificate, key, clients = (path.read_bytes() for path in options.tls)
        credentials = grpc.ssl_server_credentials([(key, certificate)], clients, require_client_auth=True)
        port = server.add_secure_port(options.address, credentials)
    else:
        port = server.add_insecure_port(options.address)
    server.start()
    print(f"{options.address.rpartition(':')[0]}:{port}", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
