"""The one interceptor of the gRPC door: asks who calls and whether they may before a byte of a message is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from gateway.errors import ScanError
from gateway.receivers.calls import Admission, Calls
from gateway.receivers.gate import Gate
from gateway.receivers.identity import Credentials
from gateway.receivers.roles import METHODS, NOBODY, Role
from gateway.telemetry import traces


class Doorkeeper(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Guards every method of every service; one without a row in `roles.METHODS` is closed to all.

    A method that takes one message is served as one that takes a stream, and the guard reads the message itself:
    gRPC would else keep a handler thread waiting for it before anybody has asked who sends it.
    """

    def __init__(self, gate: Callable[[], Gate], calls: Calls) -> None:
        """`gate` is asked for at each call, so that a reload reaches the next one."""
        self._gate = gate
        self._calls = calls

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Put the guard before the method's handler."""
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        roles = METHODS.get(handler_call_details.method, NOBODY)
        if handler.response_streaming:
            behaviour = handler.stream_stream if handler.request_streaming else _of_one(handler.unary_stream)
            guarded = self._guarded_stream(handler_call_details.method, roles, behaviour)
            make = grpc.stream_stream_rpc_method_handler
        else:
            behaviour = handler.stream_unary if handler.request_streaming else _of_one(handler.unary_unary)
            guarded = self._guarded(handler_call_details.method, roles, behaviour)
            make = grpc.stream_unary_rpc_method_handler
        made: grpc.RpcMethodHandler = make(guarded, handler.request_deserializer, handler.response_serializer)
        return made

    def _guarded(self, method: str, roles: frozenset[Role] | None, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with (
                traces.received(context.invocation_metadata(), method),
                self._calls.guarded(context, Admission(self._gate, _credentials(context), roles)),
            ):
                return behaviour(requests, context)

        return call

    def _guarded_stream(
        self, method: str, roles: frozenset[Role] | None, behaviour: Callable[..., Any]
    ) -> Callable[..., Any]:
        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with (
                traces.received(context.invocation_metadata(), method),
                self._calls.guarded(context, Admission(self._gate, _credentials(context), roles)),
            ):
                yield from behaviour(requests, context)

        return call


def _of_one(behaviour: Callable[..., Any]) -> Callable[..., Any]:
    """The behaviour with a stream of exactly one message in the message's place."""

    def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        message = next(requests, None)
        if message is None:
            raise ScanError("the call holds no message")
        return behaviour(message, context)

    return call


def _credentials(context: grpc.ServicerContext) -> Credentials:
    token = None
    for key, value in context.invocation_metadata():
        if key == "authorization":
            scheme, _, rest = str(value).partition(" ")
            token = rest.strip() if scheme.lower() == "bearer" else ""
            break
    verified = context.auth_context()
    names = verified.get("x509_common_name", ())
    return Credentials(
        token,
        # A subject with several common names could be read as any of them.
        names[0].decode("utf-8", "replace") if len(names) == 1 else None,
        frozenset(name.decode("utf-8", "replace") for name in verified.get("x509_subject_alternative_name", ())),
    )
