"""Idle connections, slow senders and strangers do not stop honest ones; on SIGTERM calls end before the process."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site
from waiting import until


@pytest.fixture(scope="module")
def crowd() -> ModuleType:
    """The long form, of which this is the short one."""
    path = Path(__file__).parents[2] / "benchmarks" / "crowd.py"
    spec = importlib.util.spec_from_file_location("crowd", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_crowd_does_not_stop_an_honest_sender(tmp_path: Path, crowd: ModuleType) -> None:
    site = crowd.site_with_shares(tmp_path / "site")
    with GatewayProcess(site.config) as gateway, ExitStack() as here:
        address = gateway.addresses.grpc
        here.enter_context(crowd.idle(address, 150, greeting=crowd.PREFACE))
        here.enter_context(crowd.idle(address, 150, greeting=b""))
        here.enter_context(crowd.slow(address, 16, site.tokens["scanner"]))
        here.enter_context(crowd.slow(address, 16, None))
        assert len(crowd.ask(address, site.tokens["reviewer"], 20)) == 20


def test_it_drains_under_load_unready_first(tmp_path: Path, crowd: ModuleType) -> None:
    site = Site.make(tmp_path / "site")
    site.config.write_text(site.config.read_text().replace("threads = 8", "threads = 8\ndrain_notice_s = 3.0"))
    ready = tmp_path / "ready.json"
    command = [sys.executable, "-m", "gateway.cli", "serve", "--config", str(site.config), "--ready-file", str(ready)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process, ExitStack() as here:
        here.callback(process.kill)
        until(ready.exists)
        address = json.loads(ready.read_text())["grpc"]
        channel = here.enter_context(grpc.insecure_channel(address))
        go_on = threading.Event()
        metadata = (("authorization", f"Bearer {site.tokens['scanner']}"),)
        slow = rpc.ProtectionGatewayStub(channel).ProtectStream.future(parts(crowd.CT, go_on), metadata=metadata)
        with Client(address, token=site.tokens["reviewer"]) as client:
            assert client.protect(crowd.CT, "open").admitted

            process.send_signal(signal.SIGTERM)

            until(lambda: not ready.exists())
            check = health_pb2_grpc.HealthStub(channel).Check
            until(
                lambda: (
                    check(health_pb2.HealthCheckRequest(service="ready")).status
                    == health_pb2.HealthCheckResponse.NOT_SERVING
                )
            )
            assert client.protect(crowd.CT, "strict").disposition == "reject"  # still taken: nobody else knows yet
        go_on.set()
        assert slow.result(30).disposition == pb.DISPOSITION_ADMIT
        assert process.wait(60) == 0


def parts(scan: bytes, go_on: threading.Event) -> Iterator[pb.ProtectChunk]:
    yield pb.ProtectChunk(begin=pb.Begin(route="open"))
    go_on.wait(60)
    yield pb.ProtectChunk(data=scan)
    yield pb.ProtectChunk(end=pb.End())
