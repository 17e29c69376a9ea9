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
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.app.assembly import AUDIT_LOG
from gateway.audit.sqlite import SqliteReader
from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site
from waiting import until

AHEAD = 4
"""Scans before it: the worker is sent two batches, and the rest wait."""


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


def test_a_caller_that_hangs_up_in_the_queue_is_dropped_before_the_detectors(
    site: Site, gateway: GatewayProcess
) -> None:
    waiting, examined = 'scanward_queue_depth{queue="detection"}', "scanward_batch_size_sum"
    given_up = scan(7100)
    with (
        Client(gateway.addresses.grpc, token=site.tokens["reviewer"]) as client,
        grpc.insecure_channel(gateway.addresses.grpc) as channel,
        ThreadPoolExecutor(AHEAD) as pool,
    ):
        client.protect(scan(7000), "ct")
        before, refused = figure(gateway, examined), len([each for each in records(site) if each["kind"] == "refused"])
        with worker_stopped(gateway):
            ahead = []
            for number in range(AHEAD):  # one after the other, so that all of them stand before it
                ahead.append(pool.submit(client.protect, scan(7001 + number), "ct"))
                until(lambda: figure(gateway, waiting) >= max(0, len(ahead) - 2))
            depth = figure(gateway, waiting)
            call = rpc.ProtectionGatewayStub(channel).Protect.future(
                pb.ProtectRequest(dicom=given_up, route="ct"),
                metadata=[("authorization", f"Bearer {site.tokens['scanner']}")],
            )
            until(lambda: figure(gateway, waiting) > depth)
            call.cancel()
        assert [each.result(120).disposition for each in ahead] == ["admit"] * AHEAD
        until(lambda: len([each for each in records(site) if each["kind"] == "refused"]) > refused)
    assert figure(gateway, examined) == before + AHEAD
    log = records(site)
    assert [each["error"] for each in log if each["kind"] == "refused"][-1] == "Abandoned"
    digest = hashlib.sha256(given_up).hexdigest()
    assert [each["kind"] for each in log if each.get("scan_sha256") == digest] == []
