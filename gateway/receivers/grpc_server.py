"""The gRPC door: a synchronous thread pool, because it moves half-megabyte messages twice as fast as grpc.aio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.api.kserve.v2 import inference_pb2_grpc as inference_rpc
from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.deadline import Deadline
from gateway.errors import ConfigError, ScanError
from gateway.receivers import kserve
from gateway.receivers.calls import Calls, current_caller
from gateway.receivers.doorkeeper import Doorkeeper
from gateway.receivers.identity import Gate
from gateway.receivers.receiver import CutOff, Inflation
from gateway.receivers.wire import sentence, to_wire
from gateway.reply import Reply
from gateway.scan import Scan
from gateway.service import ProtectionService
from gateway.settings.doors import GrpcConfig, TlsConfig
from gateway.store.spool import Spool
from gateway.throttle import Throttle
from signing.hashed import Hashed

RECEIVER = "grpc"
"""Name of this door in metrics and records."""
READY = "ready"
"""Health service that is SERVING once the detectors are loaded; the empty name says that the process lives."""
CHUNK_BYTES_MAX = 4 << 20
"""Of one piece of a stream; senders use 256 KiB."""

_MESSAGE_OVERHEAD = 4096
"""Room for the route and the field headers beside the object."""
_GATEWAY = pb.DESCRIPTOR.services_by_name["ProtectionGateway"].full_name
_STOPPING_S = 5.0
"""For calls that were cancelled to notice it."""


class ScanServicer(rpc.ProtectionGatewayServicer):
    """Converts a call into a scan, has it protected, and converts the reply back."""

    def __init__(
        self,
        config: GrpcConfig,
        service: Callable[[], ProtectionService],
        spool: Spool,
        calls: Calls,
        inflation: Inflation,
    ) -> None:
        """`service` is asked for at each call, so that a reload reaches the next call whole."""
        self._config = config
        self._service = service
        self._spool = spool
        self._calls = calls
        self._inflation = inflation

    def Protect(self, request: pb.ProtectRequest, context: grpc.ServicerContext) -> pb.ProtectReply:  # noqa: N802
        """Examine an object that came in one message."""
        return self._answer(context, lambda deadline: self._unary(request, deadline))

    def ProtectStream(  # noqa: N802
        self, request_iterator: Iterator[pb.ProtectChunk], context: grpc.ServicerContext
    ) -> pb.ProtectReply:
        """Examine an object that came in pieces."""
        return self._answer(context, lambda deadline: self._streamed(request_iterator, deadline))

    def _unary(self, request: pb.ProtectRequest, deadline: Deadline) -> Reply:
        if len(request.dicom) > self._config.message_bytes_max:
            raise ScanError(f"the object is larger than {self._config.message_bytes_max} bytes: stream it")
        return self._protect(request.dicom, request.route, deadline)

    def _streamed(self, chunks: Iterator[pb.ProtectChunk], deadline: Deadline) -> Reply:
        parts = _received(chunks)
        first = next(parts, None)
        if first is None or first.WhichOneof("part") != "begin":
            raise ScanError("a stream starts with Begin")
        sender = current_caller()
        route = sender.route(first.begin.route)
        self._calls.throttle.admit(sender.source)
        share = self._calls.throttle.limits_of(sender.source).spool_share
        with self._spool.open(first.begin.size_hint, owner=sender.source.identity, share=share) as writer:
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
        return self._protect(data, route, deadline, sha256=sha256, hashed=hashed)

    def _protect(
        self,
        data: bytes | memoryview,
        route: str,
        deadline: Deadline,
        *,
        sha256: str | None = None,
        hashed: Hashed | None = None,
    ) -> Reply:
        sender = current_caller()  # by the configuration of now, however long ago a stream began
        with self._inflation.room(data, deadline):
            scan = Scan.receive(
                data,
                route=sender.route(route),
                receiver=RECEIVER,
                source=sender.source,
                sha256=sha256,
                hashed=hashed,
            )
            return self._service().protect(scan, deadline)

    def _answer(self, context: grpc.ServicerContext, work: Callable[[Deadline], Reply]) -> pb.ProtectReply:
        reply = self._calls.run(context, work)
        if detail := sentence(reply.findings):
            context.set_trailing_metadata((("scanward-detail", detail),))
        return to_wire(reply, findings=current_caller().sees_findings)


class GrpcReceiver:
    """The server with its ports, health, and the interceptor that nothing passes unknown."""

    def __init__(
        self,
        config: GrpcConfig,
        *,
        service: Callable[[], ProtectionService],
        gate: Callable[[], Gate],
        spool: Spool,
        throttle: Throttle,
    ) -> None:
        """Create the gRPC server; `service` and `gate` are asked for at each call. Fork nothing after this."""
        self._config = config
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="grpc")
        self._calls = calls = Calls(
            RECEIVER,
            lambda error, source: service().refuse(error, receiver=RECEIVER, source=source),
            call_s_max=config.call_s_max,
            throttle=throttle,
        )
        inflation = Inflation()
        self._server = grpc.server(
            self._pool,
            interceptors=[Doorkeeper(gate, calls)],
            options=[
                ("grpc.max_receive_message_length", config.message_bytes_max + _MESSAGE_OVERHEAD),
                ("grpc.so_reuseport", 0),  # a second gateway on the same port must fail, not share its calls
            ],
            maximum_concurrent_rpcs=config.concurrent_calls_max,
        )
        rpc.add_ProtectionGatewayServicer_to_server(
            ScanServicer(config, service, spool, calls, inflation), self._server
        )
        inference = kserve.InferenceServicer(service, calls, inflation, lambda: self._is_ready)
        inference_rpc.add_GRPCInferenceServiceServicer_to_server(inference, self._server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.reflection:
            names = (_GATEWAY, kserve.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
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
        self._is_ready = ready
        words = health_pb2.HealthCheckResponse
        for name in (READY, _GATEWAY, kserve.SERVICE):
            self._health.set(name, words.SERVING if ready else words.NOT_SERVING)

    def drain(self, seconds: float) -> None:
        """Say unready, take no more calls, give those in progress that long, and close."""
        self.ready(False)
        self._server.stop(seconds).wait()
        # Cancelled calls may still be in their handlers; their records must be written before the log is closed.
        ending = threading.Thread(target=self._pool.shutdown, daemon=True)
        ending.start()
        ending.join(_STOPPING_S)
        self._calls.close()


def _received(chunks: Iterator[pb.ProtectChunk]) -> Iterator[pb.ProtectChunk]:
    """The pieces as they come; raises `CutOff` where the call ended before them, whoever ended it."""
    try:
        yield from chunks
    except grpc.RpcError:
        raise CutOff("the call ended before the stream did") from None


def _credentials(tls: TlsConfig) -> grpc.ServerCredentials:
    pair = (tls.private_key.read_bytes(), tls.certificate.read_bytes())
    roots = tls.client_ca.read_bytes() if tls.client_ca is not None else None
    return grpc.ssl_server_credentials([pair], root_certificates=roots, require_client_auth=roots is not None)
