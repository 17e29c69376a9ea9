"""Whole studies on one stream, over a real socket: a verdict for each instance, one at the end, nothing unbounded."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pydicom
import pytest
from click.testing import CliRunner, Result
from pydicom.data import get_testdata_file

from gateway import documents
from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.app.assembly import AUDIT_LOG, Records, build_service
from gateway.app.plan import Plan
from gateway.audit.sqlite import SqliteReader
from gateway.cli import main
from gateway.client.client import Client, ClientError, Screened, StudyAnswer
from gateway.pixels.decompressor import DisposableDecoder
from gateway.receipt import verify_receipt
from gateway.receivers.grpc_server import GrpcReceiver
from gateway.settings.config import Config
from gateway.testing import Site
from gateway.upstreams.upstreams import Upstreams
from signing import envelope, sign

STATUS = grpc.StatusCode
END = pb.ProtectChunk(end=pb.End())
OTHER_STUDY = "instance 2 belongs to another study than those before it"


def instance(number: int, *, study: str = "1.2.3", **changes: str) -> bytes:
    """A slice of its own, of a few kilobytes, in the study of that UID."""
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    dataset.StudyInstanceUID = study
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    dataset.InstanceNumber = number
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    if changes.get("StudyInstanceUID") == "":
        del dataset.StudyInstanceUID
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def begin(route: str = "open") -> pb.ProtectChunk:
    return pb.ProtectChunk(begin=pb.Begin(route=route))


def data(content: bytes) -> pb.ProtectChunk:
    return pb.ProtectChunk(data=content)


def pieces(*objects: bytes, route: str = "open") -> Iterator[pb.ProtectChunk]:
    for content in objects:
        yield begin(route)
        for at in range(0, len(content), 8192):
            yield data(content[at : at + 8192])
        yield END


@dataclass
class Door:
    """A started receiver, and what a client needs to talk to it."""

    site: Site
    plan: Plan
    records: Records
    receiver: GrpcReceiver
    address: str
    stub: rpc.ProtectionGatewayStub

    def token(self, source: str = "scanner") -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.site.tokens[source]}"),)

    def send(self, chunks: Iterator[pb.ProtectChunk], source: str = "scanner") -> list[pb.StudyReply]:
        return list(self.stub.ProtectStudy(chunks, metadata=self.token(source), timeout=60))

    def recorded(self, kind: str) -> list[dict]:
        with SqliteReader(self.plan.config.storage.directory / AUDIT_LOG) as log:
            bodies = [json.loads(body) for _, body, _ in log.entries() if isinstance(body, bytes)]
        return [body for body in bodies if body["kind"] == kind]


RULE = """
[[policy.rules]]
name = "enough-is-enough"
disposition = "reject"
study_held_min = 2
[routes.strict]"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("site"))


@pytest.fixture
def door(site: Site, tmp_path: Path) -> Iterator[Door]:
    """A receiver whose studies have at most 40 instances, and 6 seconds."""
    text = site.config.read_text().replace('directory = "data"', f'directory = "{tmp_path / "data"}"')
    limits = "study_instances_max = 40\nstudy_s_max = 6.0\nobject_bytes_max = 1048576\ncall_s_max = 2.0"
    text = text.replace("threads = 8", f"threads = 8\n{limits}", 1).replace("\n[routes.strict]", RULE, 1)
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
            gate=lambda: plan.gate,
            spool=records.spool,
            throttle=records.throttle,
        )
        closing.callback(receiver.drain, 5.0)
        address = receiver.start()
        channel = closing.enter_context(grpc.insecure_channel(address))
        yield Door(site, plan, records, receiver, address, rpc.ProtectionGatewayStub(channel))


def words(replies: list[pb.StudyReply]) -> list[str]:
    """What each reply is about, and what became of it."""
    return [
        f"{reply.WhichOneof('reply')} "
        + pb.Disposition.Name(getattr(reply, reply.WhichOneof("reply")).disposition)
        .removeprefix("DISPOSITION_")
        .lower()
        for reply in replies
    ]


def test_every_instance_is_answered_in_order_and_the_study_at_the_end(door: Door) -> None:
    objects = [instance(number) for number in range(20)]
    replies = door.send(pieces(*objects))

    assert words(replies) == ["instance admit"] * 20 + ["study admit"]
    alone = [door.stub.Protect(pb.ProtectRequest(dicom=each, route="open"), metadata=door.token()) for each in objects]
    assert [reply.instance for reply in replies[:-1]] == alone
    assert replies[-1].study.instances == 20


def test_a_verdict_falls_before_the_next_instance_is_sent(door: Door) -> None:
    """A sender may wait for each."""
    fallen = threading.Semaphore(0)

    def one_by_one() -> Iterator[pb.ProtectChunk]:
        for number in range(5):
            yield from pieces(instance(number))
            assert fallen.acquire(timeout=20)

    replies = []
    for reply in door.stub.ProtectStudy(one_by_one(), metadata=door.token(), timeout=60):
        replies.append(reply)
        fallen.release()
    assert words(replies) == ["instance admit"] * 5 + ["study admit"]


def test_a_study_is_its_worst_instance(door: Door) -> None:
    signed = sign(instance(1), signer=door.site.hospital.signer("ct"), at=datetime.now(UTC))
    assert words(door.send(pieces(signed, route="strict"))) == ["instance admit", "study admit"]
    replies = door.send(pieces(signed, instance(2), route="strict"))
    assert words(replies) == ["instance admit", "instance reject", "study reject"]
    assert list(replies[-1].study.reasons) == ["signature"]


def test_what_is_no_dicom_is_refused_with_a_sentence_and_the_rest_goes_on(door: Door) -> None:
    replies = door.send(pieces(instance(1), b"nothing", instance(2)))
    assert words(replies) == ["instance admit", "instance reject", "instance admit", "study reject"]
    assert replies[1].detail.startswith("not a DICOM file")


def test_a_rule_knows_how_many_of_the_study_were_held(door: Door) -> None:
    replies = door.send(pieces(b"nothing", b"nothing more", *(instance(number) for number in range(12))))
    assert words(replies)[-2:] == ["instance reject", "study reject"]
    assert any("enough-is-enough" in body["rules"] for body in door.recorded("decided"))


def test_the_same_bytes_twice_are_one_instance(door: Door) -> None:
    replies = door.send(pieces(instance(1), instance(1), instance(2)))
    assert words(replies) == ["instance admit"] * 3 + ["study admit"]
    assert replies[-1].study.instances == 2


@pytest.mark.parametrize(
    ("chunks", "sentence"),
    [
        ([*pieces(instance(1)), *pieces(instance(2, study="1.9"))], OTHER_STUDY),
        ([*pieces(instance(1)), *pieces(instance(2, StudyInstanceUID=""))], "instance 2 has no Study Instance UID"),
        ([*pieces(instance(1)), *pieces(instance(2), route="strict")], "a study goes to one route"),
        ([*pieces(instance(1)), data(b"x")], "a stream starts with Begin"),
        ([begin(), begin()], "after Begin a stream holds data, then End"),
        ([begin(), data(bytes(2 << 20)), END], "the object is larger than 1048576 bytes"),
        ([*pieces(*[instance(1)] * 41)], "the study has more than 40 instances"),
        ([], "a study has at least one instance"),
        ([begin("")], "name a route: this sender has several"),
    ],
)  # fmt: skip
def test_a_stream_that_breaks_the_rules_gets_a_sentence_and_no_study(
    door: Door, chunks: list[pb.ProtectChunk], sentence: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.send(iter(chunks))
    assert (caught.value.code(), caught.value.details()) == (STATUS.INVALID_ARGUMENT, sentence)
    assert door.recorded("refused")[-1]["detail"] == sentence
    assert door.recorded("study") == []
    assert [body["disposition"] for body in door.recorded("decided")] in ([], ["admit"], ["admit", "admit"])


def test_a_study_that_is_cut_off_is_no_study(door: Door) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        door.send(iter([*pieces(instance(1)), begin(), data(b"half")]))
    assert caught.value.code() is STATUS.ABORTED
    assert (door.recorded("study"), door.recorded("refused")[-1]["error"]) == ([], "CutOff")


def test_a_sender_that_hangs_up_frees_everything(door: Door) -> None:
    over = threading.Event()

    def silent() -> Iterator[pb.ProtectChunk]:
        yield from pieces(instance(1))
        yield begin()
        yield data(bytes(1000))
        over.wait(30)

    call = door.stub.ProtectStudy(silent(), metadata=door.token())
    assert words([next(call)]) == ["instance admit"]
    call.cancel()
    door.receiver.drain(10.0)
    over.set()
    assert [body["error"] for body in door.recorded("refused")] == ["CutOff"]
    assert (door.recorded("study"), door.records.spool.bytes_used) == ([], 0)


def test_a_sender_that_hangs_up_between_two_verdicts_is_recorded_as_well(door: Door) -> None:
    """The handler may be in the middle of handing a verdict over, and then nobody asks it for another."""
    for _ in range(5):
        call = door.stub.ProtectStudy(pieces(*(instance(number) for number in range(8))), metadata=door.token())
        assert words([next(call)]) == ["instance admit"]
        call.cancel()
    door.receiver.drain(10.0)
    refused = [body["error"] for body in door.recorded("refused")]
    assert len(refused) + len(door.recorded("study")) == 5
    assert set(refused) <= {"CutOff", "Abandoned"}


def test_a_study_may_take_longer_than_a_call_and_not_for_ever(door: Door) -> None:
    """A call has 2 seconds here, a study 6."""
    over = threading.Event()

    def slow() -> Iterator[pb.ProtectChunk]:
        yield from pieces(instance(1))
        over.wait(3.0)
        yield from pieces(instance(2))
        over.wait(30)

    call = door.stub.ProtectStudy(slow(), metadata=door.token())
    assert words([next(call), next(call)]) == ["instance admit"] * 2
    with pytest.raises(grpc.RpcError):
        next(call)
    over.set()


def test_studies_never_take_all_of_the_doors_threads(door: Door) -> None:
    """Eight threads: two studies; the third is told to come again, and a single scan still gets through."""
    over = threading.Event()

    def waiting() -> Iterator[pb.ProtectChunk]:
        yield from pieces(instance(1))
        over.wait(20)

    calls = [door.stub.ProtectStudy(waiting(), metadata=door.token()) for _ in range(2)]
    assert [words([next(call)]) for call in calls] == [["instance admit"]] * 2
    with pytest.raises(grpc.RpcError) as caught:
        door.send(pieces(instance(2)))
    assert caught.value.code() is STATUS.RESOURCE_EXHAUSTED
    assert door.stub.Protect(pb.ProtectRequest(dicom=instance(3), route="open"), metadata=door.token()).log_index
    over.set()
    assert [words(list(call)) for call in calls] == [["study admit"]] * 2
    assert words(door.send(pieces(instance(2)))) == ["instance admit", "study admit"]


def test_the_record_and_the_receipt_bind_every_instance(door: Door) -> None:
    replies = door.send(pieces(instance(1), instance(2), b"nothing"))
    answers, study = [reply.instance for reply in replies[:-1]], replies[-1].study
    (record,) = door.recorded("study")
    assert record["instances"] == [answer.log_index for answer in answers]
    assert (record["disposition"], record["p_value"], record["suspect"]) == ("reject", None, [])
    assert record["study_digest"] == study.study_sha256
    key = envelope.load_public_key(door.site.directory / "keys" / "receipt.pub")
    statement = verify_receipt(study.receipt, [key])
    assert [each["digest"]["sha256"] for each in statement["subject"]] == [answer.scan_sha256 for answer in answers]
    predicate = statement["predicate"]
    assert (predicate["disposition"], predicate["study"]["sha256"]) == ("reject", study.study_sha256)
    assert [each["disposition"] for each in predicate["instances"]] == ["admit", "admit", "reject"]
    assert predicate["examination"]["sha256"] == record["examination_sha256"]
    assert record["receipt_sha256"] == documents.hashlib.sha256(study.receipt).hexdigest()
    value = door.records.metrics.registry.get_sample_value
    assert value("scanward_studies_total", {"receiver": "grpc", "disposition": "reject"}) == 1


def test_without_a_record_no_study_is_answered(door: Door) -> None:
    def until_the_log_is_gone() -> Iterator[pb.ProtectChunk]:
        yield from pieces(instance(1))
        assert answered.wait(20)
        door.records.audit.close()

    answered = threading.Event()
    call = door.stub.ProtectStudy(until_the_log_is_gone(), metadata=door.token())
    assert words([next(call)]) == ["instance admit"]
    answered.set()
    with pytest.raises(grpc.RpcError) as caught:
        list(call)
    assert caught.value.code() is STATUS.UNAVAILABLE


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{number}.dcm" for number in range(3)]
    for number, path in enumerate(paths):
        path.write_bytes(instance(number))
    return paths


def test_the_client_yields_each_file_and_then_the_study(door: Door, files: list[Path]) -> None:
    with Client(door.address, token=door.site.tokens["reviewer"]) as client:
        *instances, study = client.study(files, "open")
    assert [each.path for each in instances if isinstance(each, Screened) and each.answer is not None] == files
    assert isinstance(study, StudyAnswer)
    assert (study.disposition, study.instances, len(study.slices)) == ("admit", 3, 3)


def screened(door: Door, files: list[Path], route: str, *more: str) -> Result:
    arguments = ["screen", *map(str, files), "--study", "--address", door.address, "--route", route, *more]
    return CliRunner().invoke(main, arguments, env={"SCANWARD_TOKEN": door.site.tokens["scanner"]})


def test_the_command_sends_a_study_and_says_what_it_is(door: Door, files: list[Path]) -> None:
    result = screened(door, files, "open", "--json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["ok"], len(document["scans"])) == (0, True, 3)
    assert (document["study"]["disposition"], document["study"]["instances"]) == ("admit", 3)
    assert document["study"]["p_value"] is None
    held = screened(door, files, "strict")
    assert (held.exit_code, held.stdout.splitlines()[-1].split(";")[0]) == (
        1,
        "study of 3 instances: reject (signature)",
    )


def test_the_command_says_why_a_stream_was_no_study(door: Door, files: list[Path]) -> None:
    files[2].write_bytes(instance(9, study="1.9"))
    result = screened(door, files, "open")
    assert (result.exit_code, "instance 3 belongs to another study" in result.stderr) == (2, True)


def test_a_file_that_cannot_be_read_is_named_and_the_study_is_not_judged_without_it(
    door: Door, files: list[Path]
) -> None:
    with (
        Client(door.address, token=door.site.tokens["scanner"]) as client,
        pytest.raises(ClientError, match=r"gone\.dcm"),
    ):
        list(client.study([*files, files[0].with_name("gone.dcm")], "open"))
    door.receiver.drain(10.0)
    assert door.recorded("study") == []
