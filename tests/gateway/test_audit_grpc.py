"""AuditService over a real socket: an auditor with a public key and a kept checkpoint needs to believe nobody."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from pydicom.data import get_testdata_file

from gateway.api.v1 import audit_pb2 as pb
from gateway.api.v1 import audit_pb2_grpc as rpc
from gateway.audit.checkpoint import Checkpoint
from gateway.audit.tree import leaf_hash, verify_consistency, verify_inclusion
from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site
from signing.envelope import load_public_key

CT = Path(str(get_testdata_file("CT_small.dcm")))


class Auditor:
    """A caller with a token."""

    def __init__(self, site: Site, channel: grpc.Channel, source: str = "auditor") -> None:
        self._stub = rpc.AuditServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {site.tokens[source]}"),)
        self._key = load_public_key(site.directory / "keys" / "checkpoint.pub")

    def ask(self, method: str, request: object) -> object:
        return getattr(self._stub, method)(request, metadata=self._metadata, timeout=30)

    def checkpoint(self, note: bytes | None = None) -> Checkpoint:
        if note is None:
            note = self.ask("GetCheckpoint", pb.GetCheckpointRequest()).note
        return Checkpoint.open(note, [self._key])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site.make(tmp_path_factory.mktemp("audit"), tables="[audit]\ncheckpoint_records = 1\n")


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[GatewayProcess]:
    with GatewayProcess(site.config) as process:
        yield process


@pytest.fixture(scope="module")
def channel(gateway: GatewayProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(gateway.addresses.grpc) as channel:
        yield channel


@pytest.fixture
def auditor(site: Site, channel: grpc.Channel) -> Auditor:
    return Auditor(site, channel)


def test_a_receipt_is_proven_to_be_on_record(site, gateway, auditor):
    """From the sender's receipt to the signed root, with nothing believed in between."""
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        answer = client.protect(CT, "open")
    auditor.ask("ReadRecords", pb.ReadRecordsRequest())  # one record more, so that a checkpoint covers those before
    proof = auditor.ask("ProveInclusion", pb.ProveInclusionRequest(index=answer.log_index))
    checkpoint = auditor.checkpoint(proof.checkpoint.note)
    assert proof.size == checkpoint.size
    verify_inclusion(leaf_hash(proof.record), answer.log_index, proof.size, proof.path, checkpoint.root)
    assert json.loads(proof.record)["receipt_sha256"] == hashlib.sha256(answer.receipt).hexdigest()


def test_the_log_is_proven_to_have_only_grown(auditor):
    kept = auditor.checkpoint()
    for _ in range(3):
        auditor.ask("ReadRecords", pb.ReadRecordsRequest())
    proof = auditor.ask("ProveConsistency", pb.ProveConsistencyRequest(old_size=kept.size))
    new = auditor.checkpoint(proof.checkpoint.note)
    assert new.size > kept.size
    verify_consistency(kept.size, kept.root, new.size, new.root, proof.path)


def test_records_are_read_in_pages_and_the_reading_is_on_record(auditor):
    page = auditor.ask("ReadRecords", pb.ReadRecordsRequest(first=1, records_max=2))
    assert ([record.index for record in page.records], page.next) == ([1, 2], 3)
    last = auditor.ask("ReadRecords", pb.ReadRecordsRequest(first=page.size))
    record = json.loads(last.records[0].body)
    assert {key: record[key] for key in ("kind", "source", "first", "records")} == {
        "kind": "inspected", "source": "auditor", "first": 1, "records": 2
    }  # fmt: skip
    beyond = auditor.ask("ReadRecords", pb.ReadRecordsRequest(first=10**6))
    assert (list(beyond.records), beyond.next) == ([], 10**6)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("ProveInclusion", pb.ProveInclusionRequest(index=10**6)),
        ("ProveInclusion", pb.ProveInclusionRequest(index=2**64 - 1)),
        ("ProveInclusion", pb.ProveInclusionRequest(index=0, size=2**64 - 1)),
        ("ProveConsistency", pb.ProveConsistencyRequest(old_size=0)),
        ("ProveConsistency", pb.ProveConsistencyRequest(old_size=1, new_size=2**63)),
        ("ReadRecords", pb.ReadRecordsRequest(first=2**64 - 1)),
        ("ReadRecords", pb.ReadRecordsRequest(records_max=2**32 - 1)),
    ],
)
def test_impossible_questions_are_invalid_arguments(auditor, method, request_):
    with pytest.raises(grpc.RpcError) as refused:
        auditor.ask(method, request_)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_only_auditors_and_reviewers_are_answered(site, channel):
    for source, code in (("scanner", "PERMISSION_DENIED"), ("administrator", "PERMISSION_DENIED"), ("reviewer", None)):
        caller = Auditor(site, channel, source)
        if code is None:
            assert caller.checkpoint().size > 0
            continue
        with pytest.raises(grpc.RpcError) as refused:
            caller.ask("GetCheckpoint", pb.GetCheckpointRequest())
        assert refused.value.code().name == code
