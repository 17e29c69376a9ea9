"""A gateway whose model is served elsewhere: the same answers, and what becomes of a scan while the server is away."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.sop_class import CTImageStorage

from gateway.api.kserve.v2 import inference_pb2 as inference
from gateway.api.kserve.v2 import inference_pb2_grpc as inference_rpc
from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.app.assembly import AUDIT_LOG, INBOX
from gateway.audit.sqlite import SqliteReader
from gateway.testing import GatewayProcess, Site
from waiting import until

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
SERVER = Path(__file__).parents[1] / "simulators" / "kserve_server.py"


class Server:
    """The model server, always at the same address."""

    def __init__(self, model: Path, journal: Path) -> None:
        journal.touch()
        self._journal = journal
        self._command = [sys.executable, str(SERVER), str(model), str(journal), "--address"]
        self.address = "127.0.0.1:0"

    def __enter__(self) -> Server:
        self._process = subprocess.Popen([*self._command, self.address], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def answered(self) -> list[str]:
        return self._journal.read_text().split()


@pytest.fixture(scope="module")
def server(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Server:
    journal = tmp_path_factory.mktemp("server") / "journal"
    server = Server(site.directory / "small" / "model.onnx", journal)
    with server:
        pass  # it has its address
    return server


@pytest.fixture(scope="module")
def remote(server: Server, served_elsewhere: Callable[[str, str], Path]) -> Iterator[GatewayProcess]:
    """The site's gateway once more, with a route to the server beside the one that answers itself."""
    config = served_elsewhere(server.address, "remote")
    with GatewayProcess(config) as process:
        yield process


DOOR = """
[receivers.dimse]
address = "127.0.0.1:0"
unsafe_plaintext = true
examiners = 2
[receivers.dimse.routes]
REMOTE = "remote"
[[sources]]
name = "ct-1"
roles = ["submit"]
calling_ae = "CT1"
enrolled = false
routes = ["remote"]
"""


def store(gateway: GatewayProcess, path: Path) -> int:
    assert gateway.addresses.dimse is not None
    entity = AE(ae_title="CT1")
    entity.add_requested_context(CTImageStorage, ExplicitVRLittleEndian)
    host, _, port = gateway.addresses.dimse.rpartition(":")
    association = entity.associate(host, int(port), ae_title="REMOTE")
    assert association.is_established
    status = association.send_c_store(path)
    association.release()
    return int(status.Status)


def protect(site: Site, gateway: GatewayProcess, dicom: bytes, route: str) -> pb.ProtectReply:
    with grpc.insecure_channel(gateway.addresses.grpc) as channel:
        metadata = (("authorization", f"Bearer {site.tokens['scanner']}"),)
        request = pb.ProtectRequest(dicom=dicom, route=route)
        reply: pb.ProtectReply = rpc.ProtectionGatewayStub(channel).Protect(request, metadata=metadata, timeout=60)
        return reply


def model_ready(site: Site, gateway: GatewayProcess) -> bool:
    with grpc.insecure_channel(gateway.addresses.grpc) as channel:
        metadata = (("authorization", f"Bearer {site.tokens['scanner']}"),)
        request = inference.ModelReadyRequest(name="remote")
        stub = inference_rpc.GRPCInferenceServiceStub(channel)
        return bool(stub.ModelReady(request, metadata=metadata, timeout=60).ready)


def recorded(site: Site, directory: str = "remote") -> list[str]:
    with SqliteReader(site.directory / directory / AUDIT_LOG) as log:
        return [json.loads(body)["kind"] for _, body, _ in log.entries() if isinstance(body, bytes)]


def test_a_served_model_answers_as_the_embedded_one(site: Site, server: Server, remote: GatewayProcess) -> None:
    with server:
        elsewhere, here = (protect(site, remote, CT, route).prediction for route in ("remote", "ct"))
    assert elsewhere.label == here.label
    assert [each.score for each in elsewhere.scores] == pytest.approx([each.score for each in here.scores])


def test_while_the_server_is_away_the_caller_is_told_to_come_back_and_nothing_is_predicted_twice(
    site: Site, server: Server, remote: GatewayProcess
) -> None:
    dicom = b"x" + CT[1:]  # the preamble is free: another scan of the same image
    before = len(server.answered)

    for _ in range(2):
        with pytest.raises(grpc.RpcError) as caught:
            protect(site, remote, dicom, "remote")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert int(dict(caught.value.trailing_metadata())["grpc-retry-pushback-ms"]) > 0
        assert recorded(site)[-2:] == ["decided", "failed"]
    assert not model_ready(site, remote)

    with server:
        reply = None
        while reply is None:
            try:
                reply = protect(site, remote, dicom, "remote")
            except grpc.RpcError:
                time.sleep(0.2)
        again = protect(site, remote, dicom, "remote")
    assert reply.prediction.label
    assert again.receipt == reply.receipt
    assert server.answered[before:] == [f"{reply.scan_sha256}-admit"]
    assert recorded(site)[-2:] == ["decided", "answered"]
    assert model_ready(site, remote)


def test_the_outcomes_are_counted(site: Site, server: Server, remote: GatewayProcess) -> None:
    text = urllib.request.urlopen(f"http://{remote.addresses.metrics}/metrics", timeout=10).read().decode()
    for outcome in ("ok", "unavailable"):
        assert f'scanward_upstream_seconds_count{{outcome="{outcome}",upstream="small"}}' in text


def test_what_was_acknowledged_waits_for_the_server_through_kill_9_and_is_predicted_once(
    site: Site, server: Server, served_elsewhere: Callable[[str, str], Path]
) -> None:
    """Nobody waits behind C-STORE: the scan is in custody until the model has answered."""
    config = served_elsewhere(server.address, "custody")
    config.write_text(config.read_text().replace("[[sources]]", DOOR + "[[sources]]", 1))
    before = len(server.answered)

    with GatewayProcess(config) as gateway:
        assert store(gateway, Path(str(get_testdata_file("CT_small.dcm")))) == 0x0000
        until(lambda: "failed" in recorded(site, "custody"))
        os.kill(gateway.pid, signal.SIGKILL)
    assert "answered" not in recorded(site, "custody")

    with server, GatewayProcess(config):
        until(lambda: "answered" in recorded(site, "custody"))
    assert recorded(site, "custody").count("answered") == 1
    assert len(server.answered) == before + 1
    assert list((site.directory / "custody" / INBOX).glob("*.object")) == []
