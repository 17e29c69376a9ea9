"""The gRPC door: a synchronous thread pool, because it moves half-megabyte messages twice as fast as grpc.aio."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.api.kserve.v2 import inference_pb2_grpc as inference_rpc
from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.api.v1.audit_pb2_grpc import add_AuditServiceServicer_to_server
from gateway.api.v1.quarantine_pb2_grpc import add_QuarantineServiceServicer_to_server
from gateway.callers.throttle import Throttle
from gateway.deadline import Deadline
from gateway.errors import ConfigError, ScanError
from gateway.receivers import kserve
from gateway.receivers.auditing import AUDIT, AuditServicer
from gateway.receivers.calls import Calls, current_caller
from gateway.receivers.chunks import Received, next_object, pieces
from gateway.receivers.doorkeeper import Doorkeeper
from gateway.receivers.gate import Gate
from gateway.receivers.receiver import CutOff, Inflation
from gateway.receivers.reviewing import QUARANTINE, QuarantineServicer
from gateway.receivers.studies import StudyRoom
from gateway.receivers.tls import grpc_credentials, grpc_handshakes
from gateway.receivers.wire import sentence, study_to_wire, to_wire
from gateway.reply import Reply
from gateway.scan import Scan
from gateway.service import ProtectionService
from gateway.settings.doors import GrpcConfig
from gateway.store.spool import Spool, SpoolWriter
from gateway.study.study import Study

RECEIVER = "grpc"
"""Name of this door in metrics and records."""
READY = "ready"
"""Health service that is SERVING once the detectors are loaded; the empty name says that the process lives."""

_MESSAGE_OVERHEAD = 4096
"""Room for the route and the field headers beside the object."""
_GATEWAY = pb.DESCRIPTOR.services_by_name["ProtectionGateway"].full_name
_STOPPING_S = 5.0
"""For calls that were cancelled to notice it."""


def _connection_options(config: GrpcConfig) -> tuple[tuple[str, int], ...]:
    """Bounds on what a connection may cost, in milliseconds and numbers; without them silent ones stay for ever."""
    return (
        ("grpc.max_allowed_incoming_connections", config.connections_max),
        ("grpc.max_concurrent_streams", config.concurrent_calls_max),
        ("grpc.server_handshake_timeout_ms", 10_000),
        ("grpc.max_connection_idle_ms", 300_000),
        ("grpc.max_connection_age_ms", 3_600_000),  # after which a client's certificate is looked at again
        ("grpc.max_connection_age_grace_ms", int(1000 * max(config.call_s_max, config.study_s_max))),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    )


class ScanServicer(rpc.ProtectionGatewayServicer):
    """Converts a call into a scan, has it protected, and converts the reply back."""

    def __init__(
        self,
        config: GrpcConfig,
        service: Callable[[], ProtectionService],
        spool: Spool,
        calls: Calls,
        inflation: Inflation,
        studies: StudyRoom,
    ) -> None:
        """`service` is asked for at each call, so that a reload reaches the next call whole."""
        self._config = config
        self._service = service
        self._spool = spool
        self._calls = calls
        self._inflation = inflation
        self._studies = studies

    def Protect(self, request: pb.ProtectRequest, context: grpc.ServicerContext) -> pb.ProtectReply:  # noqa: N802
        """Examine an object that came in one message."""
        return self._answer(context, lambda deadline: self._unary(request, deadline))

    def ProtectStream(  # noqa: N802
        self, request_iterator: Iterator[pb.ProtectChunk], context: grpc.ServicerContext
    ) -> pb.ProtectReply:
        """Examine an object that came in pieces."""
        return self._answer(context, lambda deadline: self._streamed(request_iterator, deadline))

    def ProtectStudy(  # noqa: N802
        self, request_iterator: Iterator[pb.ProtectChunk], context: grpc.ServicerContext
    ) -> Iterator[pb.StudyReply]:
        """Examine the instances of a study as they come, and then the study."""
        seconds = self._config.study_s_max
        return self._calls.run(context, lambda deadline: self._study(request_iterator, deadline), seconds=seconds)

    def _unary(self, request: pb.ProtectRequest, deadline: Deadline) -> Reply:
        if len(request.dicom) > self._config.message_bytes_max:
            raise ScanError(f"the object is larger than {self._config.message_bytes_max} bytes: stream it")
        return self._protect(Received(request.route, request.dicom), deadline)

    def _streamed(self, chunks: Iterator[pb.ProtectChunk], deadline: Deadline) -> Reply:
        received = next_object(pieces(chunks), self._begin)
        if received is None:
            raise ScanError("a stream starts with Begin")
        return self._protect(received, deadline)

    def _begin(self, begin: pb.Begin) -> tuple[str, SpoolWriter]:
        """Ask whether the sender may, before any byte is taken."""
        sender = current_caller()
        route = sender.route(begin.route, by_rule=True)
        self._calls.throttle.admit(sender.source)
        share = self._calls.throttle.limits_of(sender.source).spool_share
        return route, self._spool.open(begin.size_hint, owner=sender.source.identity, share=share)

    def _study(self, chunks: Iterator[pb.ProtectChunk], deadline: Deadline) -> Iterator[pb.StudyReply]:
        caller, parts = current_caller(), pieces(chunks)
        study: Study | None = None

        def begin(begin: pb.Begin) -> tuple[str, SpoolWriter]:
            nonlocal study
            caller.route(begin.route)  # a study is one route's, and no rule can tell it from its first instance
            route, writer = self._begin(begin)
            study = study or self._service().begin_study(route, RECEIVER, caller.source)
            if route != study.route:
                raise ScanError("a study goes to one route")
            return route, writer

        def examine(received: Received, number: int) -> Reply:
            assert study is not None
            sooner = Deadline.after(min(self._config.call_s_max, deadline.remaining()), deadline.cancelled)
            return self._protect(received, sooner, study, number)

        try:
            for reply in self._studies.answers(parts, begin, examine):
                shown = to_wire(reply, findings=current_caller().sees_findings)
                yield pb.StudyReply(instance=shown, detail=sentence(reply.findings), earlier=reply.earlier)
        except GeneratorExit:  # nobody listens any more: there is no status to give, but there was a call
            gone = CutOff("the call ended before the study did")
            self._service().refuse(gone, receiver=RECEIVER, source=caller.source.identity)
            raise
        if study is None:
            raise ScanError("a study has at least one instance")
        concluded = self._service().conclude(study)
        yield pb.StudyReply(study=study_to_wire(concluded, findings=current_caller().sees_findings))

    def _protect(self, received: Received, deadline: Deadline, study: Study | None = None, number: int = 1) -> Reply:
        sender = current_caller()  # by the configuration of now, however long ago a stream began
        with self._inflation.room(received.data, deadline):
            scan = Scan.receive(
                received.data,
                route=sender.route(received.route, by_rule=study is None),
                receiver=RECEIVER,
                source=sender.source,
                sha256=received.sha256,
                hashed=received.hashed,
            )
            if not scan.route:
                scan = replace(scan, route=sender.route(self._service().route_by_rule(scan)))
            if study is None:
                return self._service().protect(scan, deadline)
            study.admit(scan, number)
            reply = self._service().protect(scan, deadline, study_held=study.held)
            study.answered(number, reply)
            return reply

    def _answer(self, context: grpc.ServicerContext, work: Callable[[Deadline], Reply]) -> pb.ProtectReply:
        reply = self._calls.run(context, work)
        beside = {"scanward-detail": sentence(reply.findings), "scanward-earlier": "true" if reply.earlier else ""}
        context.set_trailing_metadata(tuple((key, value) for key, value in beside.items() if value))
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
        self._started = False
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
                *_connection_options(config),
            ],
            maximum_concurrent_rpcs=config.concurrent_calls_max,
        )
        self._studies = StudyRoom(config.threads, instances_max=config.study_instances_max)
        scans = ScanServicer(config, service, spool, calls, inflation, self._studies)
        rpc.add_ProtectionGatewayServicer_to_server(scans, self._server)
        inference = kserve.InferenceServicer(service, calls, inflation, lambda: self._is_ready)
        inference_rpc.add_GRPCInferenceServiceServicer_to_server(inference, self._server)
        add_AuditServiceServicer_to_server(AuditServicer(lambda: service().audit, calls), self._server)
        add_QuarantineServiceServicer_to_server(QuarantineServicer(service, calls), self._server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if config.reflection:
            names = (_GATEWAY, AUDIT, QUARANTINE, kserve.SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        self.ready(False)

    def start(self) -> str:
        """Listen; returns HOST:PORT with the real port. Raises `ConfigError` where the address cannot be had."""
        host = self._config.address.rpartition(":")[0]
        try:
            if self._config.tls is None:
                port = self._server.add_insecure_port(self._config.address)
            else:
                handshakes = grpc_handshakes("receivers.grpc.tls", self._config.tls)
                ask_clients = self._config.tls.client_ca is not None
                port = self._server.add_secure_port(
                    self._config.address, grpc_credentials(handshakes, ask_clients=ask_clients)
                )
        except RuntimeError:
            port = 0
        if not port:
            raise ConfigError([f"receivers.grpc.address: {self._config.address} cannot be listened on"])
        self._server.start()
        self._started = True
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
        if self._started:
            time.sleep(self._config.drain_notice_s)  # until whoever balances load has seen it
        self._server.stop(seconds).wait()
        # Cancelled calls may still be in their handlers; their records must be written before the log is closed.
        ending = threading.Thread(target=self._finish, daemon=True)
        ending.start()
        ending.join(_STOPPING_S)
        self._calls.close()

    def _finish(self) -> None:
        self._pool.shutdown()
        self._studies.close()
