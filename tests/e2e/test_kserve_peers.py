"""The inference door before the client that people have, and the remote upstream before the servers that they run."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from gateway.api.kserve.v2 import inference_pb2 as inference
from gateway.api.kserve.v2 import inference_pb2_grpc as inference_rpc
from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site

START_S_MAX = 120.0
CT = Path(str(get_testdata_file("CT_small.dcm")))
ROOT = Path(__file__).parents[2]


def peer(name: str) -> str:
    """The Python of a peer that cannot live with our dependencies; `make peers` installs it."""
    python = ROOT / ".cache" / "peers" / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"needs {name}: make test-peers")
    return str(python)


class TestTritonClient:
    """An unmodified tritonclient."""

    def ask(self, site: Site, gateway: GatewayProcess, model: str, file: Path, source: str = "scanner") -> Any:
        script = ROOT / "tests" / "peers" / "triton_client.py"
        command = [peer("tritonclient"), str(script), gateway.addresses.grpc, site.tokens[source], model, str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def test_gets_a_prediction_for_an_admitted_scan(self, site: Site, gateway: GatewayProcess) -> None:
        said = self.ask(site, gateway, "ct", CT)

        assert (said["live"], said["ready"], said["model_ready"], said["other_ready"]) == (True, True, True, False)
        assert (said["server"], said["inputs"], said["id"]) == ("scanward", ["DICOM", "image"], "7")
        assert said["label"] in {"dark", "bright"}
        assert sum(said["probabilities"][0]) == pytest.approx(1.0)
        assert said["parameters"]["scanward-disposition"] == "admit"

    def test_hears_why_a_scan_is_refused(self, site: Site, gateway: GatewayProcess) -> None:
        said = self.ask(site, gateway, "strict", CT)
        assert (said["status"], said["message"]) == ("StatusCode.FAILED_PRECONDITION", "reject: signature")

    def test_hears_why_a_tensor_is_held(self, site: Site, gateway: GatewayProcess, tmp_path: Path) -> None:
        np.save(tmp_path / "odd.npy", np.full((1, 1, 64, 64), 7.0, np.float32))
        said = self.ask(site, gateway, "ct", tmp_path / "odd.npy")
        assert (said["status"], said["message"]) == ("StatusCode.FAILED_PRECONDITION", "quarantine: unexaminable")


def ports(count: int) -> list[int]:
    """Ports that were free a moment ago: these servers cannot choose their own."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    found = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return found


@contextmanager
def running(command: list[str], folder: Path, port: int, environment: dict[str, str] | None = None) -> Iterator[str]:
    """The server as a process, once its model is ready."""
    address, log = f"127.0.0.1:{port}", folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
        )
    try:
        give_up_at = time.monotonic() + START_S_MAX
        while not model_ready(address):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < give_up_at, log.read_text()[-4000:]
            time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(60)


def model_ready(address: str) -> bool:
    with grpc.insecure_channel(address) as channel:
        try:
            request = inference.ModelReadyRequest(name="small")
            return bool(inference_rpc.GRPCInferenceServiceStub(channel).ModelReady(request, timeout=5).ready)
        except grpc.RpcError:
            return False


@contextmanager
def mlserver(model: Path, folder: Path) -> Iterator[str]:
    python = Path(peer("mlserver"))
    http, port, metrics = ports(3)
    shutil.copy(ROOT / "tests" / "peers" / "mlserver_runtime.py", folder)
    settings = {"host": "127.0.0.1", "http_port": http, "grpc_port": port, "metrics_port": metrics}
    (folder / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0}))
    implementation = {"name": "small", "implementation": "mlserver_runtime.OnnxModel"}
    (folder / "model-settings.json").write_text(json.dumps({**implementation, "parameters": {"uri": str(model)}}))
    command = [str(python.with_name("mlserver")), "start", str(folder)]
    with running(command, folder, port, {"PYTHONPATH": str(folder)}) as address:
        yield address


@contextmanager
def triton(model: Path, folder: Path) -> Iterator[str]:
    port, http, metrics = ports(3)
    script = ROOT / "tests" / "peers" / "triton_server.py"
    command = [peer("pytriton"), str(script), str(model), str(port), str(http), str(metrics)]
    with running(command, folder, port) as address:
        yield address


@pytest.mark.peers
@pytest.mark.parametrize("server", [mlserver, triton], ids=["mlserver", "triton"])
def test_a_real_server_answers_as_the_embedded_model(
    server: Callable[[Path, Path], Any],
    site: Site,
    served_elsewhere: Callable[[str, str], Path],
    tmp_path: Path,
) -> None:
    with server(site.directory / "small" / "model.onnx", tmp_path) as address:
        config = served_elsewhere(address, tmp_path.name)
        with (
            GatewayProcess(config) as gateway,
            Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client,
        ):
            elsewhere, here = (client.protect(CT, route).prediction for route in ("remote", "ct"))
    assert elsewhere is not None
    assert here is not None
    assert elsewhere.label == here.label
    assert [each.score for each in elsewhere.scores] == pytest.approx([each.score for each in here.scores])
