"""What the gateway's tests share: scans, cases, findings and a log, made in one line."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.log import AuditLog
from gateway.audit.sqlite import SqliteSink
from gateway.case import Case, Digests
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.scan import Scan, Source
from gateway.telemetry.metrics import Metrics
from signing import Reason

# The same examples in every run, and no limit on time: a busy machine is no defect.
hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None)
hypothesis.settings.load_profile("deterministic")

NOON = datetime(2026, 5, 4, 12, 0, 0, 123456, tzinfo=UTC)

DIGESTS = Digests(model="11" * 32, profile="22" * 32, artefact="", policy="44" * 32, trust="55" * 32)


class Orthanc:
    """A real DICOM server of its own, as sender and as receiver; stopped when the `with` block is left."""

    def __init__(self, directory: Path, modalities: dict[str, list[Any]]) -> None:
        self._directory = directory
        self.http, self.dicom = _free_port(), _free_port()
        settings = {
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": "ORTHANC",
            "DicomCheckModalityHost": False,
            "AuthenticationEnabled": False,
            "StorageDirectory": str(directory / "storage"),
            "DicomModalities": modalities,
            "Plugins": ["/usr/share/orthanc/plugins"],
        }
        directory.mkdir()
        (directory / "orthanc.json").write_text(json.dumps(settings))

    def __enter__(self) -> Orthanc:
        environment = {**os.environ, "TCP_NODELAY": "1"}  # DCMTK's own switch, without which each image waits 45 ms
        self._process = subprocess.Popen(
            ["Orthanc", str(self._directory / "orthanc.json")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        for _ in range(600):
            try:
                self.get("system")
            except OSError:
                time.sleep(0.05)
            else:
                return self
        raise AssertionError("Orthanc does not start")

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/{path}", timeout=60) as answer:
            return bytes(answer.read())

    def post(self, path: str, body: bytes) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}/{path}", body, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - our own server
            return bytes(answer.read())


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def orthanc(tmp_path: Path) -> Callable[..., Orthanc]:
    """Starts an Orthanc that knows these modalities (name: AE title, host, port)."""
    if shutil.which("Orthanc") is None:
        pytest.skip("needs orthanc")
    return lambda modalities=None: Orthanc(tmp_path / f"orthanc-{time.monotonic_ns()}", modalities or {})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def checkpoint_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def digests() -> Digests:
    return DIGESTS


@pytest.fixture
def make_scan() -> Callable[..., Scan]:
    """A scan of any bytes, as a door would hand it over that could not parse it."""

    def make(data: bytes = b"scan", *, route: str = "ct", source: Source | None = None) -> Scan:
        digest = hashlib.sha256(data).hexdigest()
        return Scan(memoryview(data), digest, route, "grpc", source or Source("ct-scanner", enrolled=True), None, None)

    return make


@pytest.fixture
def make_case(make_scan: Callable[..., Scan]) -> Callable[..., Case]:
    """A case that both stages have seen: a good signature, a suspect image."""

    def make(data: bytes = b"scan", *, route: str = "ct", findings: tuple[Finding, ...] | None = None) -> Case:
        if findings is None:
            findings = (
                Finding("signature", Outcome.PASSED, Reason.OK, "signed by the scanner", seconds=0.001),
                Finding(
                    "detection",
                    Outcome.FAILED,
                    GatewayReason.SUSPECT,
                    score=3.1,
                    p_value=0.001,
                    p_values={"uad": 0.1 + 0.2, "twin": 1e-5},
                    seconds=0.02,
                ),
            )
        return Case(make_scan(data, route=route), NOON, DIGESTS, findings)

    return make


@pytest.fixture
def audit(tmp_path: Path, checkpoint_key: Ed25519PrivateKey, metrics: Metrics) -> Iterator[AuditLog]:
    """A real log on disk."""
    sink = SqliteSink(tmp_path / "audit" / "audit.db")
    log = AuditLog(sink, checkpoint_key, metrics=metrics, checkpoint_file=tmp_path / "audit" / "checkpoint.json")
    yield log
    log.close()
