"""The gRPC door: a synchronous thread pool, because it moves half-megabyte messages twice as fast as grpc.aio."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.deadline import Deadline
from gateway.errors import ConfigError, ScanError
from gateway.receivers.calls import CALLER, Calls
from gateway.receivers.receiver import ANONYMOUS, Caller, CutOff, Gate, Inflation, Unauthenticated
from gateway.receivers.wire import sentence, to_wire
from gateway.reply import Reply
from gateway.scan import Scan
from gateway.service import ProtectionService
from gateway.settings.doors import GrpcConfig, TlsConfig
from gateway.store.spool import Spool
from signing.hashed import Hashed

RECEIVER = "grpc"
"""Name of this door in metrics and records."""
READY = "ready"
"""Health service that is SERVING once the detectors are loaded; the empty name says that the process lives."""
CHUNK_BYTES_MAX = 4 << 20
"""Of one piece of a stream; senders use 256 KiB."""

_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_MESSAGE_OVERHEAD = 4096
"""Room for the route and the field headers beside the object."""
_GATEWAY = pb.DESCRIPTOR.services_by_name["ProtectionGateway"].full_name
_STOPPING_S = 5.0
"""For calls that were cancelled to notice it."""


class ScanServicer(rpc.ProtectionGatewayServicer):
    """Converts a call into a scan, has it protected, and converts the reply back."""

    def __init__(
        self, config: GrpcConfig, service: Callable[[], ProtectionService], spool: Spool, calls: Calls
    ) -> None:
        """`service` is asked for at each call, so that a reload reaches the next call whole."""
        self._config = config
        self._service = service
        self._spool = spool
        self._calls = calls
        self._inflation = Inflation()

    def Protect(self, request: pb.ProtectRequest, context: grpc.ServicerContext) -> pb.ProtectReply:  # noqa: N802
        """Examine an object that came in one message."""
        return self._answer(context, lambda deadline: self._unary(request, deadline))

    def ProtectStream(  # noqa: N802
        self, request_iterator: Iterator[pb.ProtectChunk], context: grpc.ServicerContext
    ) -> pb.ProtectReply:
        """Examine an object that came in pieces."""
        # The iterator blocks for as long as the sender likes; only ending the call from outside wakes it.
        watch = threading.Timer(self._config.call_s_max, context.cancel)
        watch.daemon = True
        watch.start()
        try:
            return self._answer(context, lambda deadline: self._streamed(request_iterator, context, deadline))
        finally:
            watch.cancel()

    def _unary(self, request: pb.ProtectRequest, deadline: Deadline) -> Reply:
        caller = CALLER.get()
        if len(request.dicom) > self._config.message_bytes_max:
            raise ScanError(f"the object is larger than {self._config.message_bytes_max} bytes: stream it")
        return self._protect(request.dicom, caller.route(request.route), caller, deadline)

    def _streamed(self, chunks: Iterator[pb.ProtectChunk], context: grpc.ServicerContext, deadline: Deadline) -> Reply:
        caller = CALLER.get()
        parts = _received(chunks)
        first = next(parts, None)
        if first is None or first.WhichOneof("part") != "begin":
            raise ScanError("a stream starts with Begin")
        route = caller.route(first.begin.route)
        with self._spool.open(first.begin.size_hint) as writer:
            for part in parts:
                kind = part.WhichOneof("part")
                if kind == "end":
                    break
                if kind != "data":
                    raise ScanError("after Begin a stream holds data, then End")
                if len(part.data) > CHUNK_BYTES_MAX:
                    raise ScanError(f"a piece of {len(part.data)} bytes; at most {CHUNK_BYTES_MAX} are taken at once")
                writer.write(part.data)
            else:
                raise CutOff(f"the stream was cut off after {writer.size} bytes: there was no End")
            sha256, hashed, data = writer.sha256, writer.hashed(), writer.seal()
        return self._protect(data, route, caller, deadline, sha256=sha256, hashed=hashed)

    def _protect(
        self,
        data: bytes | memoryview,
        route: str,
        caller: Caller,
        deadline: Deadline,
        *,
        sha256: str | None = None,
        hashed: Hashed | None = None,
    ) -> Reply:
        with self._inflation.room(data, deadline):
            scan = Scan.receive(
                data, route=route, receiver=RECEIVER, source=caller.source, sha256=sha256, hashed=hashed
            )
            return self._service().protect(scan, deadline)

    def _answer(self, context: grpc.ServicerContext, work: Callable[[Deadline], Reply]) -> pb.ProtectReply:
        reply = self._calls.run(context, work)
        if detail := sentence(reply.findings):
            context.set_trailing_metadata((("scanward-detail", detail),))
        return to_wire(reply, CALLER.get().role)


class GrpcReceiver:
    """The server with its ports, health, and the interceptor that nothing passes unknown."""

    def __init__(
        self, config: GrpcConfig, *, service: Callable[[], ProtectionService], gate: Callable[[], Gate], spool: Spool
    ) -> None:
        """Create the gRPC server; `service` and `gate` are asked for at each call. Fork nothing after this."""
        self._config = config
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="grpc")
        calls = Calls(
            RECEIVER,
            lambda error, source: service().refuse(error, receiver=RECEIVER, source=source),
            call_s_max=config.call_s_max,
        )
        self._server = grpc.server(
            self._pool,
            interceptors=[_Doorkeeper(gate, calls)],
            options=[
                ("grpc.max_receive_message_length", config.message_bytes_max + _MESSAGE_OVERHEAD),
                ("grpc.so_reuseport", 0),  # a second gateway on the same port must fail, not share its calls
            ],
            maximum_concurrent_rpcs=config.concurrent_calls_max,
        )
        rpc.add_ProtectionGatewayServicer_to_server(ScanServicer(config, service, spool, calls), self._server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.reflection:
            reflection.enable_server_reflection((_GATEWAY, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        self.ready(False)

    def start(self) -> str:
        """Listen; returns HOST:PORT with the real port. Raises `ConfigError` where the address cannot be had."""
        host = self._config.address.rpartition(":")[0]
        try:
            if self._config.tls is None:
                port = self._server.add_insecure_port(self._config.address)
            else:
                port = self._server.add_secure_port(self._config.address, _credentials(self._config.tls))
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigError([f"receivers.grpc.address: {self._config.address} cannot be listened on"])
        self._server.start()
        return f"{host}:{port}"

    def ready(self, ready: bool) -> None:
        """Say by the health service whether calls should come here; the process lives either way."""
        words = health_pb2.HealthCheckResponse
        for name in (READY, _GATEWAY):
            self._health.set(name, words.SERVING if ready else words.NOT_SERVING)

    def drain(self, seconds: float) -> None:
        """Say unready, take no more calls, give those in progress that long, and close."""
        self.ready(False)
        self._server.stop(seconds).wait()
        # Cancelled calls may still be in their handlers; their records must be written before the log is closed.
        ending = threading.Thread(target=self._pool.shutdown, daemon=True)
        ending.start()
        ending.join(_STOPPING_S)


class _Doorkeeper(grpc.ServerInterceptor):  # type: ignore[misc]  # grpc has no types
    """Lets known callers in, to whatever service; denies by default, so that a new service is closed when it comes."""

    def __init__(self, gate: Callable[[], Gate], calls: Calls) -> None:
        self._gate = gate
        self._calls = calls

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Guard the method's handler; only the health check is open to all, since orchestrators carry no tokens."""
        handler = continuation(handler_call_details)
        if handler is None or handler_call_details.method == _HEALTH_CHECK:
            return handler
        kind = ("stream" if handler.request_streaming else "unary") + (
            "_stream" if handler.response_streaming else "_unary"
        )
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        guarded: grpc.RpcMethodHandler = make(
            self._guarded(getattr(handler, kind)), handler.request_deserializer, handler.response_serializer
        )
        return guarded

    def _guarded(self, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(behaviour)
        def call(request: Any, context: grpc.ServicerContext, *others: Any) -> Any:
            try:
                caller = self._gate().admit(token=_token(context), tls_subject=_tls_subject(context))
            except Unauthenticated as error:
                self._calls.turn_away(context, error, ANONYMOUS)
            before = CALLER.set(caller)
            try:
                return behaviour(request, context, *others)
            finally:
                CALLER.reset(before)

        return call


def _received(chunks: Iterator[pb.ProtectChunk]) -> Iterator[pb.ProtectChunk]:
    """The pieces as they come; raises `CutOff` where the call ended before them, whoever ended it."""
    try:
        yield from chunks
    except grpc.RpcError:
        raise CutOff("the call ended before the stream did") from None


def _token(context: grpc.ServicerContext) -> str | None:
    for key, value in context.invocation_metadata():
        if key == "authorization":
            scheme, _, token = str(value).partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return None


def _tls_subject(context: grpc.ServicerContext) -> str | None:
    """Common name of the verified client certificate; None where there is none, or where it has several."""
    names = context.auth_context().get("x509_common_name", ())
    return names[0].decode("utf-8", "replace") if len(names) == 1 else None


def _credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    pair = (tls.private_key.read_bytes(), tls.certificate.read_bytes())
    roots = tls.client_ca.read_bytes() if tls.client_ca is not None else None
    return grpc.ssl_server_credentials([pair], root_certificates=roots, require_client_auth=roots is not None)
