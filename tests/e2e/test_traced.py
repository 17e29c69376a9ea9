"""A scan's way through a real gateway, as a collector sees it: every step, one trace, and nothing of the patient."""

from __future__ import annotations

import io
import secrets
import string
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as otlp
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as otlp_rpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.api.kserve.v2 import inference_pb2 as inference
from gateway.api.kserve.v2 import inference_pb2_grpc as inference_rpc
from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.testing import GatewayProcess, Site

CT = Path(str(get_testdata_file("CT_small.dcm")))
TRACE, CALLER = secrets.token_hex(16), secrets.token_hex(8)
MARK = "".join(secrets.choice(string.ascii_uppercase) for _ in range(12))
STEPS = {
    "receive", "protect", "stage signature", "stage preprocess", "stage detection", "stage denoising",
    "queue", "batch", "audit append", "model",
}  # fmt: skip


class Collector(otlp_rpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.raw = b""

    def Export(self, request: otlp.ExportTraceServiceRequest, context: object) -> otlp.ExportTraceServiceResponse:  # noqa: N802
        self.raw += request.SerializeToString()
        self.spans += [span for part in request.resource_spans for scope in part.scope_spans for span in scope.spans]
        return otlp.ExportTraceServiceResponse()


class Model(inference_rpc.GRPCInferenceServiceServicer):
    """Answers every question alike, and remembers what came with it."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, Any]] = []

    def ModelInfer(self, request: inference.ModelInferRequest, context: Any) -> inference.ModelInferResponse:  # noqa: N802
        self.metadata.append(dict(context.invocation_metadata()))
        response = inference.ModelInferResponse(model_name="small", id=request.id)
        output = response.outputs.add(name="logits", datatype="FP32", shape=[1, 2])
        output.contents.fp32_contents.extend([0.0, 1.0])
        return response


@contextmanager
def served(add: Callable[[Any, grpc.Server], None], servicer: object) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(4))
    add(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture(scope="module")
def seen(site: Site, served_elsewhere: Callable[[str, str], Path]) -> tuple[Collector, Model]:
    """After one scan of a marked patient, sent within a trace of the caller's own."""
    dataset = dcmread(CT)
    for keyword in ("PatientName", "PatientID", "AccessionNumber", "InstitutionName", "StationName"):
        setattr(dataset, keyword, MARK)
    dataset.save_as(buffer := io.BytesIO())
    collector, model = Collector(), Model()
    with (
        served(otlp_rpc.add_TraceServiceServicer_to_server, collector) as traces,
        served(inference_rpc.add_GRPCInferenceServiceServicer_to_server, model) as models,
    ):
        config = served_elsewhere(models, "traced")
        config.write_text(config.read_text() + f'\n[traces]\naddress = "{traces}"\n')
        with GatewayProcess(config) as gateway, grpc.insecure_channel(gateway.addresses.grpc) as channel:
            metadata = (
                ("authorization", f"Bearer {site.tokens['scanner']}"),
                ("traceparent", f"00-{TRACE}-{CALLER}-01"),
                ("tracestate", f"patient={MARK}"),
                ("baggage", f"patient={MARK}"),
            )
            stub = rpc.ProtectionGatewayStub(channel)
            stub.Protect(pb.ProtectRequest(dicom=buffer.getvalue(), route="remote"), metadata=metadata, timeout=60)
            time.sleep(0.1)
    return collector, model


def test_every_step_is_a_span_of_the_callers_trace(seen: tuple[Collector, Model]) -> None:
    spans = [span for span in seen[0].spans if span.trace_id.hex() == TRACE]
    assert {span.name for span in spans} == STEPS
    assert [span.parent_span_id.hex() for span in spans if span.name == "receive"] == [CALLER]
    known = {span.span_id.hex() for span in spans} | {CALLER}
    assert {span.parent_span_id.hex() for span in spans} <= known
    assert [span.name for span in spans].count("audit append") == 2


def test_the_model_is_asked_within_it(seen: tuple[Collector, Model]) -> None:
    (asked,) = [span for span in seen[0].spans if span.name == "model"]
    assert [each["traceparent"] for each in seen[1].metadata] == [f"00-{TRACE}-{asked.span_id.hex()}-01"]
    assert not any(MARK in str(each) for each in seen[1].metadata)


def test_no_span_holds_anything_of_the_patient(seen: tuple[Collector, Model]) -> None:
    raw = seen[0].raw
    for form in (MARK, MARK.lower(), MARK.encode().hex(), MARK.encode("utf-16-le").decode("latin-1")):
        assert form.encode() not in raw
    keys = {attribute.key for span in seen[0].spans for attribute in span.attributes}
    assert keys <= {f"scanward.{key}" for key in (
        "disposition", "error", "images", "method", "outcome", "reason", "receiver", "record", "route", "scan_sha256",
        "source", "upstream",
    )}  # fmt: skip
