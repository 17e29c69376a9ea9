"""Who hangs up over gRPC while the scan waits in the detectors' queue costs them nothing, and is held for nothing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.app.assembly import AUDIT_LOG
from gateway.audit.sqlite import SqliteReader
from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site
from waiting import until

IMAGES, BATCHES = "scanward_batch_size_sum", "scanward_batch_size_count"
WAITING = 'scanward_queue_depth{queue="detection"}'


def scan(seed: int) -> bytes:
    """CT_small as another exposure would show it."""
    dataset = dcmread(str(get_testdata_file("CT_small.dcm")))
    noise = np.random.default_rng(seed).normal(0.0, 3.0, dataset.pixel_array.shape)
    dataset.PixelData = (dataset.pixel_array + noise).astype("<i2").tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def figure(gateway: GatewayProcess, name: str) -> float:
    with urllib.request.urlopen(f"http://{gateway.addresses.metrics}/metrics", timeout=30) as answer:
        found = re.search(rf"^{re.escape(name)} (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


@contextmanager
def worker_stopped(gateway: GatewayProcess) -> Iterator[None]:
    workers = [
        pid for pid in gateway.peak_bytes() if b"gateway.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)


def records(site: Site) -> list[dict[str, Any]]:
    with SqliteReader(site.directory / "data" / AUDIT_LOG) as log:
        return [json.loads(body) for _, body, _ in log.entries() if isinstance(body, bytes)]


def refusals(site: Site) -> list[dict[str, Any]]:
    return [each for each in records(site) if each["kind"] == "refused"]


def test_a_caller_that_hangs_up_in_the_queue_is_dropped_before_the_detectors(
    site: Site, gateway: GatewayProcess
) -> None:
    """The worker stands still with a batch, so that whatever else comes has to wait."""
    given_up = scan(7100)
    with (
        Client(gateway.addresses.grpc, token=site.tokens["reviewer"]) as client,
        grpc.insecure_channel(gateway.addresses.grpc) as channel,
        ThreadPoolExecutor(2) as pool,
    ):
        client.protect(scan(7000), "ct")
        images, batches, refused = figure(gateway, IMAGES), figure(gateway, BATCHES), len(refusals(site))
        with worker_stopped(gateway):
            others = [pool.submit(client.protect, scan(7001), "ct")]
            until(lambda: figure(gateway, BATCHES) == batches + 1)
            call = rpc.ProtectionGatewayStub(channel).Protect.future(
                pb.ProtectRequest(dicom=given_up, route="ct"),
                metadata=[("authorization", f"Bearer {site.tokens['scanner']}")],
            )
            until(lambda: figure(gateway, WAITING) == 1)
            others.append(pool.submit(client.protect, scan(7002), "ct"))
            until(lambda: figure(gateway, WAITING) == 2)
            call.cancel()
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=60)  # it has heard
        assert [each.result(120).disposition for each in others] == ["admit"] * len(others)
        until(lambda: len(refusals(site)) > refused)
    assert figure(gateway, IMAGES) == images + len(others)
    assert refusals(site)[-1]["error"] == "Abandoned"
    digest = hashlib.sha256(given_up).hexdigest()
    assert [each["kind"] for each in records(site) if each.get("scan_sha256") == digest] == []
