"""Spans of a scan's way, for OpenTelemetry: none unless configured, made so that no patient data can reach them.

A span holds only attributes of `ALLOWED`; any other is dropped. A failure is named by its type, never by its message.
Of what a caller sends only `traceparent` is taken (W3C Trace Context): `tracestate` and baggage may hold anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from importlib.metadata import version
from typing import Final, ParamSpec, TypeVar

import grpc
from opentelemetry import context, trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

ALLOWED: Final = frozenset(
    {
        "bytes", "disposition", "error", "images", "index", "method", "outcome", "reason", "receiver", "record",
        "route", "scan_sha256", "source", "upstream",
    }
)  # fmt: skip
"""What a span may say, each under `scanward.`: values from code and configuration, digests, and sizes."""

_TRACEPARENT = "traceparent"
_TEXT_MAX = 300
_QUEUE_MAX, _EXPORT_S_MAX = 4096, 5
"""Spans that wait for the collector; the rest is lost, for nobody may wait for a collector."""
_PROPAGATOR = TraceContextTextMapPropagator()

Value = str | int | float | bool
P = ParamSpec("P")
R = TypeVar("R")

_tracer: trace.Tracer = trace.NoOpTracer()


@dataclass(frozen=True, slots=True)
class Moment:
    """Where a span of another thread's work belongs."""

    context: context.Context


@contextmanager
def span(name: str, **attributes: Value) -> Iterator[None]:
    """Time the block; `name` is from code. What the block raises is named by its type, and goes on."""
    with _tracer.start_as_current_span(
        name, attributes=_allowed(attributes), record_exception=False, set_status_on_exception=False
    ) as current:
        try:
            yield
        except BaseException as error:
            current.set_attributes(_allowed({"error": type(error).__name__}))
            current.set_status(trace.StatusCode.ERROR)
            raise


def spanned(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Time every call of a function."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            with span(name):
                return function(*args, **kwargs)

        return call

    return decorate


def note(**attributes: Value) -> None:
    """Add to the span that this thread is in."""
    trace.get_current_span().set_attributes(_allowed(attributes))


@contextmanager
def received(metadata: Iterable[tuple[str, str | bytes]], method: str) -> Iterator[None]:
    """Time a call that came with gRPC metadata, as part of its caller's trace where it names one."""
    carrier = {key: str(value) for key, value in metadata if key == _TRACEPARENT}
    token = context.attach(_PROPAGATOR.extract(carrier, context.Context()))
    try:
        with span("receive", method=method):
            yield
    finally:
        context.detach(token)


def outgoing() -> tuple[tuple[str, str], ...]:
    """gRPC metadata that makes a call part of this trace; empty where there is none."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return tuple((key, value) for key, value in carrier.items() if key == _TRACEPARENT)


def here() -> Moment:
    """This thread's place, to be given to `past` by another."""
    return Moment(context.get_current())


def past(name: str, moment: Moment, began: float, ended: float, **attributes: Value) -> None:
    """A span for what is over already; `began` and `ended` are seconds of `time.monotonic`."""
    offset = time.time_ns() - time.monotonic_ns()
    started = _tracer.start_span(
        name, moment.context, attributes=_allowed(attributes), start_time=int(began * 1e9) + offset
    )
    started.end(int(ended * 1e9) + offset)


@contextmanager
def exporting(address: str, *, ca: bytes | None, share: float) -> Iterator[None]:
    """Send spans to an OTLP collector over gRPC, for the block; what is left at the end is sent.

    Args:
        address: HOST:PORT.
        ca: PEM; without it the connection is not encrypted.
        share: of the traces that begin here; a caller's own decision is followed.
    """
    # Heavy, and needed only where traces are wanted.
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
    from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
    from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased  # noqa: PLC0415

    global _tracer  # noqa: PLW0603 - one gateway is one process, as for the log
    credentials = grpc.ssl_channel_credentials(ca) if ca is not None else None
    exporter = OTLPSpanExporter(address, insecure=ca is None, credentials=credentials, timeout=_EXPORT_S_MAX)
    provider = TracerProvider(
        ParentBased(TraceIdRatioBased(share)),
        Resource({"service.name": "scanward", "service.version": version("scanward")}),
        shutdown_on_exit=False,
    )
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=_QUEUE_MAX, schedule_delay_millis=1000))
    before, _tracer = _tracer, provider.get_tracer("scanward")
    try:
        yield
    finally:
        _tracer = before
        provider.shutdown()


def _allowed(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {
        f"scanward.{key}": value[:_TEXT_MAX] if isinstance(value, str) else value
        for key, value in attributes.items()
        if key in ALLOWED
    }
