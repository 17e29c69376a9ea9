"""Spans, as a real OTLP collector receives them: only what may leave does, and a caller's trace goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as rpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from gateway.errors import UpstreamError
from gateway.telemetry import traces

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "DOE^JANE"


class Collector(rpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}

    def Export(self, request: pb.ExportTraceServiceRequest, context: object) -> pb.ExportTraceServiceResponse:  # noqa: N802
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans |= {span.name: span for span in scope.spans}
        return pb.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[str, Collector]]:
    servicer = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    rpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait()


def said(span: Span) -> dict[str, object]:
    return {each.key: getattr(each.value, str(each.value.WhichOneof("value"))) for each in span.attributes}


def test_a_callers_trace_goes_on_to_the_model_and_through_other_threads(collector: tuple[str, Collector]) -> None:
    address, received = collector
    with traces.exporting(address, ca=None, share=0.0):  # the caller has decided for its trace
        with traces.received([("traceparent", CALLER), ("x-other", "y")], "/a/B"):
            with traces.span("model", upstream="chest"):
                passed_on = dict(traces.outgoing())
            moment, now = traces.here(), time.monotonic()
            thread = threading.Thread(target=traces.past, args=("queue", moment, now - 2.0, now - 1.0))
            thread.start()
            thread.join()
        with traces.span("of nobody's trace"):
            pass

    spans = received.spans
    assert set(spans) == {"receive", "model", "queue"}
    assert {span.trace_id.hex() for span in spans.values()} == {CALLER.split("-")[1]}
    assert spans["receive"].parent_span_id.hex() == CALLER.split("-")[2]
    assert spans["model"].parent_span_id == spans["queue"].parent_span_id == spans["receive"].span_id
    assert passed_on == {"traceparent": f"00-{CALLER.split('-')[1]}-{spans['model'].span_id.hex()}-01"}
    assert spans["queue"].end_time_unix_nano - spans["queue"].start_time_unix_nano == pytest.approx(1e9, rel=1e-3)
    assert said(spans["model"]) == {"scanward.upstream": "chest"}


def test_what_may_not_leave_does_not(collector: tuple[str, Collector]) -> None:
    address, received = collector
    metadata = [("tracestate", f"v={SECRET}"), ("baggage", f"name={SECRET}"), ("traceparent", CALLER)]

    @traces.spanned("inner")
    def fail() -> None:
        traces.note(name=SECRET)
        raise UpstreamError(f"the model did not like {SECRET}")

    with (
        traces.exporting(address, ca=None, share=1.0),
        traces.received(metadata, "/a/B"),
        suppress(UpstreamError),
        traces.span("stage", patient=SECRET, reason="x" * 1000),
    ):
        fail()

    stage = received.spans["stage"]
    assert not any(SECRET.encode() in span.SerializeToString() for span in received.spans.values())
    assert said(stage) == {"scanward.reason": "x" * 300, "scanward.error": "UpstreamError"}
    assert stage.status.code == Status.STATUS_CODE_ERROR
    assert not stage.events


def test_without_a_collector_a_callers_trace_still_reaches_the_model() -> None:
    with traces.received([("traceparent", CALLER)], "/a/B"), traces.span("model"):
        assert traces.outgoing() == (("traceparent", CALLER),)
    assert traces.outgoing() == ()


@pytest.mark.parametrize("malformed", ["", "x", "00-zz-zz-01", CALLER + "-" * 9000])
def test_a_malformed_trace_is_none(malformed: str) -> None:
    with traces.received([("traceparent", malformed)], "/a/B"):
        assert traces.outgoing() == ()


def test_a_collector_that_is_away_keeps_nobody_waiting() -> None:
    with traces.exporting("127.0.0.1:1", ca=None, share=1.0), traces.span("protect"):
        assert traces.outgoing()  # the trace goes on to the model all the same
