"""The gRPC door over a real socket, with the real service behind it: who comes in, what is taken, what is recorded."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pydicom.data import get_testdata_file

from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.app.assembly import AUDIT_LOG, Records, build_service
from gateway.app.plan import Plan
from gateway.audit.sqlite import SqliteReader
from gateway.errors import ConfigError
from gateway.pixels.decompressor import DisposableDecoder
from gateway.receivers import grpc_server
from gateway.receivers.gate import Gate
from gateway.receivers.grpc_server import GrpcReceiver
from gateway.settings.coherence import DEFAULT
from gateway.settings.config import Config
from gateway.testing import WIDE_LIMITS, Site
from gateway.upstreams.upstreams import Upstreams
from signing import sign

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
STATUS = grpc.StatusCode


class Door:
    """A started receiver, and what a client needs to talk to it."""

    def __init__(self, site: Site, config: Path, records: Records, receiver: GrpcReceiver, address: str) -> None:
        self.site, self.config, self.records, self.receiver, self.address = site, config, records, receiver, address
        self.gate = Gate(Config.load(config).sources)
        self.channel = grpc.insecure_channel(address)
        self.stub = rpc.ProtectionGatewayStub(self.channel)

    def token(self, source: str) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.site.tokens[source]}"),)

    def protect(self, dicom: bytes, route: str = "open", source: str = "scanner") -> pb.ProtectReply:
        request = pb.ProtectRequest(dicom=dicom, route=route)
        reply: pb.ProtectReply = self.stub.Protect(request, metadata=self.token(source), timeout=30)
        return reply

    def stream(self, *parts: pb.ProtectChunk, source: str = "scanner") -> pb.ProtectReply:
        reply: pb.ProtectReply = self.stub.ProtectStream(iter(parts), metadata=self.token(source), timeout=30)
        return reply

    def recorded(self, kind: str) -> list[dict[str, object]]:
        with SqliteReader(self.site.directory / "data" / AUDIT_LOG) as log:
            bodies = [json.loads(body) for _, body, _ in log.entries() if isinstance(body, bytes)]
        return [body for body in bodies if body["kind"] == kind]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("site"))


@pytest.fixture
def door(site: Site, tmp_path: Path) -> Iterator[Door]:
    """A receiver on records of its own, with reflection, and objects to 2 MiB so that too large is cheap to reach."""
    text = site.config.read_text()
    text = text.replace('directory = "data"', f'directory = "{tmp_path / "data"}"')
    text = text.replace("threads = 8", "threads = 8\nreflection = true\nobject_bytes_max = 2097152\ncall_s_max = 5.0")
    config = site.directory / f"{tmp_path.name}.toml"
    config.write_text(text)
    plan = Plan.of(Config.load(config))
    with ExitStack() as closing:
        records = Records.open(plan)
        closing.callback(records.close)
        decompressor = closing.enter_context(DisposableDecoder())
        service = build_service(plan, records, engine=None, upstreams=Upstreams(), decompressor=decompressor)
        receiver = GrpcReceiver(
            plan.config.receivers.grpc,
            service=lambda: service,
            gate=lambda: door.gate,
            spool=records.spool,
            throttle=records.throttle,
        )
        closing.callback(receiver.drain, 5.0)
        address = receiver.start()
        door = Door(Site(tmp_path, site.hospital, site.tokens), config, records, receiver, address)
        yield door


def begin(route: str = "open", size_hint: int = 0) -> pb.ProtectChunk:
    return pb.ProtectChunk(begin=pb.Begin(route=route, size_hint=size_hint))


def data(content: bytes) -> pb.ProtectChunk:
    return pb.ProtectChunk(data=content)


END = pb.ProtectChunk(end=pb.End())


def refused(caught: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[grpc.StatusCode, str]:
    return caught.value.code(), caught.value.details()


def test_an_unsigned_scan_is_admitted_only_where_both_policies_say_so(door: Door) -> None:
    assert door.protect(CT, "open").disposition == pb.DISPOSITION_ADMIT
    strict = door.protect(CT, "strict")
    assert (strict.disposition, list(strict.reasons)) == (pb.DISPOSITION_REJECT, ["signature"])


def test_a_signed_scan_passes_the_strict_route(door: Door) -> None:
    signed = sign(CT, signer=door.site.hospital.signer("ct"), at=datetime.now(UTC))

    reply = door.protect(signed, "strict", "reviewer")

    assert reply.disposition == pb.DISPOSITION_ADMIT
    assert [(finding.stage, finding.outcome) for finding in reply.findings] == [("signature", "passed")]


def test_unary_and_stream_give_the_same_answer_to_the_same_bytes(door: Door) -> None:
    unary = door.protect(CT)
    streamed = door.stream(begin(), *(data(CT[at : at + 1000]) for at in range(0, len(CT), 1000)), END)
    assert unary == streamed


def test_a_scan_without_its_end_is_not_examined_but_recorded(door: Door) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.stream(begin(), data(CT))
    assert refused(caught) == (STATUS.ABORTED, f"the stream was cut off after {len(CT)} bytes: there was no End")
    assert door.recorded("refused")[-1]["error"] == "CutOff"
    assert not door.recorded("decided")


def test_a_sender_that_hangs_up_is_recorded_as_cut_off(door: Door) -> None:
    started = threading.Event()

    def parts() -> Iterator[pb.ProtectChunk]:
        yield begin()
        yield data(CT)
        started.set()
        threading.Event().wait(20)

    call = door.stub.ProtectStream.future(parts(), metadata=door.token("scanner"))
    assert started.wait(10)
    call.cancel()
    door.receiver.drain(10.0)
    assert [body["error"] for body in door.recorded("refused")] == ["CutOff"]


def test_a_silent_sender_is_not_waited_for_beyond_the_longest_call(door: Door) -> None:
    def parts() -> Iterator[pb.ProtectChunk]:
        yield begin()
        threading.Event().wait(30)

    with pytest.raises(grpc.RpcError):
        door.stub.ProtectStream(parts(), metadata=door.token("scanner"))
    door.receiver.drain(10.0)
    assert [body["error"] for body in door.recorded("refused")] == ["CutOff"]


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ([], "a stream starts with Begin"),
        ([data(CT), END], "a stream starts with Begin"),
        ([END], "a stream starts with Begin"),
        ([begin(), begin(), END], "after Begin a stream holds data, then End"),
        ([begin(), data(bytes((4 << 20) + 1)), END], "a piece of 4194305 bytes; at most 4194304 are taken at once"),
        ([begin(size_hint=3 << 30), data(CT), END], "the object is larger than 2097152 bytes"),
        ([begin(), *[data(bytes(1 << 20))] * 3, END], "the object is larger than 2097152 bytes"),
        ([begin(""), data(CT), END], "name a route: this sender has several"),
    ],
)
def test_a_stream_that_breaks_the_rules_gets_a_sentence_and_a_record(
    door: Door, parts: list[pb.ProtectChunk], sentence: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.stream(*parts)
    assert refused(caught) == (STATUS.INVALID_ARGUMENT, sentence)
    assert door.recorded("refused")[-1]["detail"] == sentence
    while door.records.spool.bytes_used:  # given back as the call ends, which the refusal may be a little ahead of
        time.sleep(0.01)


def test_a_wrong_size_hint_is_only_a_claim(door: Door) -> None:
    assert door.stream(begin(size_hint=5), data(CT), END).disposition == pb.DISPOSITION_ADMIT


def test_a_message_over_the_limit_is_refused_by_the_transport(door: Door) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.protect(bytes(17 << 20))
    assert caught.value.code() is STATUS.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("header", [(), (("authorization", "Bearer wrong"),), (("authorization", "Basic abc"),)])
def test_strangers_are_refused_and_recorded(door: Door, header: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.stub.Protect(pb.ProtectRequest(dicom=CT, route="open"), metadata=header)
    assert caught.value.code() is STATUS.UNAUTHENTICATED
    assert [(body["error"], body["source"]) for body in door.recorded("refused")] == [("Unauthenticated", "anonymous")]


def test_a_flood_of_strangers_leaves_a_bounded_number_of_records(door: Door) -> None:
    for _ in range(150):
        with pytest.raises(grpc.RpcError):
            door.stub.Protect(pb.ProtectRequest())
    assert 60 <= len(door.recorded("refused")) <= 121  # the minute may turn once meanwhile
    door.receiver.drain(5.0)
    summed = [body for body in door.recorded("refused") if body["error"] == "Repeated"]
    told = sum(int(str(body["detail"]).split()[0]) for body in summed)
    assert told + len(door.recorded("refused")) - len(summed) == 150


@pytest.mark.parametrize("source", ["auditor", "administrator"])
def test_a_known_caller_without_the_role_is_refused_and_recorded(door: Door, source: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.protect(CT, source=source)
    assert refused(caught) == (STATUS.PERMISSION_DENIED, "this caller has no role that may do that")
    record = door.recorded("refused")[-1]
    assert (record["error"], record["source"]) == ("NotPermitted", source)


def test_a_stream_begun_before_a_reload_has_the_rights_of_after_it(door: Door) -> None:
    begun, reloaded = threading.Event(), threading.Event()

    def parts() -> Iterator[pb.ProtectChunk]:
        yield begin()
        yield data(CT)
        begun.set()
        reloaded.wait(20)
        yield END

    call = door.stub.ProtectStream.future(parts(), metadata=door.token("scanner"), timeout=30)
    assert begun.wait(10)
    sources = Config.load(door.config).sources
    door.gate = Gate([source for source in sources if source.name != "scanner"])
    reloaded.set()

    assert call.exception().code() is STATUS.UNAUTHENTICATED
    assert not door.recorded("decided")


def test_a_stranger_is_refused_before_anything_of_its_message_has_come(door: Door) -> None:
    silent = door.channel.stream_unary("/scanward.v1.ProtectionGateway/Protect")

    with pytest.raises(grpc.RpcError) as caught:
        silent(_nothing(threading.Event()), timeout=30)

    assert caught.value.code() is STATUS.UNAUTHENTICATED


def _nothing(until: threading.Event) -> Iterator[bytes]:
    """A message that does not come."""
    until.wait(5)
    yield from ()


@pytest.mark.parametrize("route", ["Open", "nowhere", "../open"])
def test_another_route_is_refused_alike_whether_it_exists_or_not(door: Door, route: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.protect(CT, route)
    assert refused(caught) == (STATUS.PERMISSION_DENIED, "this sender may not use that route")
    assert door.recorded("refused")[-1]["error"] == "NotPermitted"


def test_the_record_of_an_attempt_is_durable_before_the_refusal_is_heard(door: Door) -> None:
    door.records.audit.close()
    with pytest.raises(grpc.RpcError) as caught:
        door.stub.Protect(pb.ProtectRequest())
    assert refused(caught) == (STATUS.UNAVAILABLE, "the audit log is closed")


def test_without_a_record_no_verdict_leaves(door: Door) -> None:
    door.records.audit.close()
    with pytest.raises(grpc.RpcError) as caught:
        door.protect(CT)
    assert caught.value.code() is STATUS.UNAVAILABLE


def test_a_crash_inside_tells_the_sender_nothing(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError("patient Doe")

    monkeypatch.setattr(grpc_server.Scan, "receive", crash)

    with pytest.raises(grpc.RpcError) as caught:
        door.protect(CT)

    assert refused(caught) == (STATUS.INTERNAL, "internal error")
    assert door.recorded("refused")[-1]["detail"] == "internal error: ZeroDivisionError"


def test_only_the_sentence_about_the_senders_own_bytes_reaches_a_submitter(door: Door) -> None:
    request = pb.ProtectRequest(dicom=b"nothing", route="open")
    reply, call = door.stub.Protect.with_call(request, metadata=door.token("scanner"))

    assert (reply.disposition, list(reply.reasons)) == (pb.DISPOSITION_REJECT, ["malformed"])
    assert dict(call.trailing_metadata())["scanward-detail"].startswith("not a DICOM file")
    assert not reply.findings


def test_an_enrolled_source_cannot_send_unsigned(door: Door) -> None:
    reply = door.protect(CT, "open", "enrolled")
    assert (reply.disposition, list(reply.reasons)) == (pb.DISPOSITION_REJECT, ["signature"])


def test_liveness_is_open_to_all_and_readiness_is_told_apart(door: Door) -> None:
    stub = health_pb2_grpc.HealthStub(door.channel)

    def status(service: str) -> int:
        answer: int = stub.Check(health_pb2.HealthCheckRequest(service=service)).status
        return answer

    words = health_pb2.HealthCheckResponse
    assert (status(""), status("ready")) == (words.SERVING, words.NOT_SERVING)
    door.receiver.ready(True)
    assert (status("ready"), status("scanward.v1.ProtectionGateway")) == (words.SERVING, words.SERVING)


def test_watching_health_takes_a_known_caller(door: Door) -> None:
    stub = health_pb2_grpc.HealthStub(door.channel)
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.Watch(health_pb2.HealthCheckRequest()))
    assert caught.value.code() is STATUS.UNAUTHENTICATED
    watch = stub.Watch(health_pb2.HealthCheckRequest(), metadata=door.token("scanner"))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_reflection_lists_the_services_to_known_callers_alone(door: Door) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(door.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError):
        next(stub.ServerReflectionInfo(iter([request])))
    answer = next(stub.ServerReflectionInfo(iter([request]), metadata=door.token("scanner")))
    assert "scanward.v1.ProtectionGateway" in [each.name for each in answer.list_services_response.service]


def test_a_port_in_use_is_a_configuration_error_not_a_shared_port(door: Door) -> None:
    plan = Plan.of(Config.load(door.config))
    taken = plan.config.receivers.grpc.model_copy(update={"address": door.address})
    service = build_service(plan, door.records, engine=None, upstreams=Upstreams(), decompressor=DisposableDecoder())
    second = GrpcReceiver(
        taken, service=lambda: service, gate=lambda: plan.gate, spool=door.records.spool, throttle=door.records.throttle
    )

    with pytest.raises(ConfigError, match=r"receivers\.grpc\.address"):
        second.start()


def test_who_sends_too_much_hears_when_to_come_back(door: Door) -> None:
    slow = WIDE_LIMITS.model_copy(update={"scans_burst": 1, "scans_per_s": 0.01})
    door.records.throttle.configure({DEFAULT: WIDE_LIMITS, "scanner": slow})
    door.protect(CT)
    with pytest.raises(grpc.RpcError) as caught:
        door.protect(CT)

    trailers = dict(caught.value.trailing_metadata())
    info = error_details_pb2.RetryInfo()
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.details[0].Unpack(info)
    assert refused(caught) == (STATUS.RESOURCE_EXHAUSTED, "too many scans from this caller")
    assert (status.code, 90 < info.retry_delay.seconds <= 100) == (8, True)
    assert (90 < int(trailers["retry-after"]) <= 100, trailers["grpc-retry-pushback-ms"]) == (True, "-1")
    assert door.protect(CT, source="reviewer").disposition == pb.DISPOSITION_ADMIT


def test_one_senders_open_streams_leave_the_others_their_threads_and_their_room(door: Door) -> None:
    shared = WIDE_LIMITS.model_copy(update={"calls_share": 0.5, "spool_share": 0.001})  # 1 MiB of 1 GiB
    door.records.throttle.configure({DEFAULT: WIDE_LIMITS, "scanner": shared})
    done = threading.Event()

    def parts() -> Iterator[pb.ProtectChunk]:
        yield begin()
        done.wait(20)

    ended = threading.Semaphore(0)
    for _ in range(20):
        call = door.stub.ProtectStream.future(parts(), metadata=door.token("scanner"))
        call.add_done_callback(lambda _: ended.release())
    assert all(ended.acquire(timeout=20) for _ in range(16))  # half of the eight threads are its own
    assert door.protect(CT, source="reviewer").disposition == pb.DISPOSITION_ADMIT
    done.set()
    assert all(ended.acquire(timeout=20) for _ in range(4))
    with pytest.raises(grpc.RpcError) as caught:
        door.stream(begin(), data(bytes(900_000)), data(bytes(900_000)), END)
    assert refused(caught) == (STATUS.RESOURCE_EXHAUSTED, "the spool holds as much of this caller as it may")
