"""The main job in a real gateway with a model behind it: signatures, detectors, the worker's death, reload, kill -9."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.app.assembly import AUDIT_LOG
from gateway.audit.export import show
from gateway.audit.sqlite import SqliteReader
from gateway.audit.verify import verify
from gateway.client.client import Answer, Client, ClientError
from gateway.protected import MANIFEST, MANIFEST_ENVELOPE, MANIFEST_TYPE
from gateway.receipt import verify_receipt
from gateway.testing import GatewayProcess, Site, write_signing_key
from signing import envelope, sign
from signing.testing import flip_pixel_bit, strip_signatures
from waiting import until

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
MIB = 1 << 20


@pytest.fixture
def as_reviewer(site: Site, gateway: GatewayProcess) -> Iterator[Client]:
    with Client(gateway.addresses.grpc, token=site.tokens["reviewer"]) as client:
        yield client


@pytest.fixture(scope="module")
def signed(site: Site) -> bytes:
    return sign(CT, signer=site.hospital.signer("ct"), at=datetime.now(UTC))


def with_noise(seed: int) -> bytes:
    """CT_small as another exposure would show it: other bytes, the same anatomy."""
    dataset = dcmread(io.BytesIO(CT))
    noise = np.random.default_rng(seed).normal(0.0, 3.0, dataset.pixel_array.shape)
    dataset.PixelData = (dataset.pixel_array + noise).astype("<i2").tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


def public(path: Path) -> Ed25519PublicKey:
    key = load_pem_public_key(path.read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    return key


def ready(gateway: GatewayProcess) -> bool:
    with grpc.insecure_channel(gateway.addresses.grpc) as channel:
        request = health_pb2.HealthCheckRequest(service="ready")
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=10)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def workers(gateway: GatewayProcess) -> list[int]:
    """Process ids of the gateway's detection workers."""
    found = []
    for pid in gateway.peak_bytes():
        with contextlib.suppress(OSError):
            if b"gateway.engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def stages(answer: Answer) -> dict[str, tuple[str, str]]:
    return {finding.stage: (finding.outcome, finding.reason) for finding in answer.findings}


def test_a_signed_scan_is_examined_by_every_stage_and_answered_by_the_model(
    as_reviewer: Client, site: Site, signed: bytes
) -> None:
    answer = as_reviewer.protect(signed, "ct")

    assert answer.disposition == "admit"
    assert stages(answer) == dict.fromkeys(("signature", "preprocess", "detection", "denoising"), ("passed", "ok"))
    assert answer.prediction is not None
    assert sum(score.score for score in answer.prediction.scores) == pytest.approx(1.0)
    statement = verify_receipt(answer.receipt, [public(site.directory / "keys" / "receipt.pub")])
    assert statement["subject"][0]["digest"]["sha256"] == hashlib.sha256(signed).hexdigest()
    decided_by = statement["predicate"]["decidedBy"]
    assert decided_by["model"]["sha256"] == _digest(site.directory / "small" / "model.onnx")
    assert decided_by["artefact"]["sha256"] == _digest(site.directory / "small" / "detectors" / MANIFEST)


def test_a_pixel_that_was_changed_is_found_and_no_later_stage_is_run(as_reviewer: Client, signed: bytes) -> None:
    answer = as_reviewer.protect(flip_pixel_bit(signed), "ct")
    assert (answer.disposition, answer.reasons, answer.prediction) == ("reject", ("mac_mismatch",), None)
    assert stages(answer)["detection"] == ("indeterminate", "not_run")


def test_a_stranger_is_not_believed(as_reviewer: Client, site: Site) -> None:
    foreign = sign(CT, signer=site.hospital.signer("stranger"), at=datetime.now(UTC))
    answer = as_reviewer.protect(foreign, "ct")
    assert (answer.disposition, answer.reasons) == ("reject", ("untrusted",))


def test_what_an_enrolled_source_sends_unsigned_was_stripped(
    site: Site, gateway: GatewayProcess, signed: bytes
) -> None:
    with Client(gateway.addresses.grpc, token=site.tokens["enrolled"]) as client:
        assert client.protect(signed, "ct").disposition == "admit"
        answer = client.protect(strip_signatures(signed), "ct")
    assert (answer.disposition, answer.reasons) == ("reject", ("signature",))


def test_an_image_that_no_clean_scan_looks_like_is_held_and_not_answered(as_reviewer: Client, site: Site) -> None:
    """Salt and pepper is what the small artefact's one detector answers to."""
    dataset = dcmread(io.BytesIO(CT))
    pixels = dataset.pixel_array.copy()
    for row, column in itertools.product(range(0, 128, 6), range(0, 128, 6)):
        pixels[row : row + 2, column : column + 2] = 2500  # one pixel wide once the model sees it
    dataset.PixelData = pixels.tobytes()
    buffer = io.BytesIO()
    dataset.save_as(buffer)

    answer = as_reviewer.protect(buffer.getvalue(), "ct")

    assert (answer.disposition, answer.reasons, answer.prediction) == ("quarantine", ("suspect",), None)
    assert stages(answer)["detection"] == ("failed", "suspect")
    assert list((site.directory / "data" / "quarantine").glob("*.scan"))


def test_many_scans_at_once_are_each_answered_as_alone(site: Site, gateway: GatewayProcess) -> None:
    scans = [with_noise(seed) for seed in range(24)]
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client, ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda scan: client.protect(scan, "ct"), scans))
        again = [client.protect(scan, "ct") for scan in scans]
    assert together == again
    assert [answer.scan_sha256 for answer in together] == [hashlib.sha256(scan).hexdigest() for scan in scans]


def test_a_large_object_passes_through_without_being_held_in_memory(
    site: Site, gateway: GatewayProcess, tmp_path: Path
) -> None:
    """400 MB in a stream: the gateway's own memory grows by some chunks."""
    dataset = dcmread(io.BytesIO(CT))
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = 50, 2048, 2048
    dataset.PixelData = b"\0" * (50 * 2048 * 2048 * 2)
    path = tmp_path / "large.dcm"
    dataset.save_as(path)
    before = gateway.peak_bytes()[gateway.pid]

    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        answer = client.protect(path, "open")

    grown = gateway.peak_bytes()[gateway.pid] - before
    print(f"\npeak RSS grew by {grown / MIB:.0f} MiB for an object of {path.stat().st_size / MIB:.0f} MiB")
    assert answer.disposition == "admit"
    assert grown < 64 * MIB


def test_when_the_worker_dies_scans_are_held_until_there_is_another(
    as_reviewer: Client, gateway: GatewayProcess
) -> None:
    (worker,) = workers(gateway)
    os.kill(worker, signal.SIGSTOP)  # so that it has a batch when it dies
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(as_reviewer.protect, with_noise(1001), "ct")
        time.sleep(0.5)
        os.kill(worker, signal.SIGKILL)
        answer = waiting.result(60)
    assert answer.disposition == "quarantine"
    assert stages(answer)["detection"] == ("indeterminate", "worker_lost")
    assert answer.prediction is None

    until(lambda: workers(gateway) not in ([], [worker]))
    until(lambda: ready(gateway))
    assert as_reviewer.protect(with_noise(1001), "ct").disposition == "admit", (
        "a lost worker's answer is not remembered"
    )


class TestReloadOfDetectors:
    """SIGHUP takes a new artefact if it is signed and fits, and keeps the old one if not."""

    @pytest.fixture(autouse=True)
    def put_back(self, site: Site, gateway: GatewayProcess) -> Iterator[None]:
        files = [site.directory / "small" / "detectors" / name for name in (MANIFEST, MANIFEST_ENVELOPE)]
        before = [file.read_bytes() for file in files]
        yield
        for file, content in zip(files, before, strict=True):
            file.write_bytes(content)
        assert self.reload(gateway) == "serving"

    @staticmethod
    def reload(gateway: GatewayProcess) -> str:
        before = len(gateway.log())
        gateway.reload()
        until(lambda: re.search(r'"event": "(serving|reload_refused)"', gateway.log()[before:]) is not None)
        found = re.search(r'"event": "(serving|reload_refused)"', gateway.log()[before:])
        assert found is not None
        return found[1]

    @staticmethod
    def resign(site: Site, key_file: str, **facts: object) -> None:
        folder = site.directory / "small" / "detectors"
        manifest = json.dumps({**json.loads((folder / MANIFEST).read_text()), **facts}).encode()
        path = site.directory / "small" / key_file
        key = envelope.load_private_key(path) if path.exists() else write_signing_key(path)
        (folder / MANIFEST).write_bytes(manifest)
        (folder / MANIFEST_ENVELOPE).write_bytes(envelope.seal(manifest, MANIFEST_TYPE, key))

    def test_a_new_one_examines_the_next_scan(self, as_reviewer: Client, site: Site, gateway: GatewayProcess) -> None:
        before = workers(gateway)
        self.resign(site, "artefacts.pem", created="2026-02-02T00:00:00Z")

        assert self.reload(gateway) == "serving"

        answer = as_reviewer.protect(with_noise(2001), "ct")
        statement = verify_receipt(answer.receipt, [public(site.directory / "keys" / "receipt.pub")])
        now = _digest(site.directory / "small" / "detectors" / MANIFEST)
        assert statement["predicate"]["decidedBy"]["artefact"]["sha256"] == now
        assert set(workers(gateway)) - set(before)

    @pytest.mark.parametrize(
        ("key_file", "facts", "word"),
        [
            ("foreign.pem", {}, "models.small.detectors"),
            ("artefacts.pem", {"model_sha256": "00" * 32}, "another model"),
            ("artefacts.pem", {"profile_sha256": "00" * 32}, "another profile"),
            ("artefacts.pem", {"guarantee": "marginal"}, "unsafe_marginal_guarantee"),
            ("artefacts.pem", {"fpr": 0.05}, "not calibrated"),
        ],
    )
    def test_one_that_is_not_to_be_believed_keeps_the_old(
        self,
        as_reviewer: Client,
        site: Site,
        gateway: GatewayProcess,
        key_file: str,
        facts: dict[str, object],
        word: str,
    ) -> None:
        before = workers(gateway)
        self.resign(site, key_file, **facts)
        assert self.reload(gateway) == "reload_refused"
        assert word in gateway.log()
        assert workers(gateway) == before
        assert as_reviewer.protect(with_noise(3001), "ct").prediction is not None


def test_what_was_answered_before_kill_9_is_in_the_log_and_is_answered_alike(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    scans = [with_noise(seed) for seed in range(60)]
    answers: dict[int, Answer] = {}

    def send(client: Client, number: int) -> None:
        with contextlib.suppress(ClientError):
            answers[number] = client.protect(scans[number], "open", timeout_s=5.0)

    with (
        GatewayProcess(site.config) as gateway,
        Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        sent = [pool.submit(send, client, number) for number in range(len(scans))]
        until(lambda: len(answers) >= 20)
        os.kill(gateway.pid, signal.SIGKILL)
        for each in sent:
            each.result()
    before = dict(answers)

    log = site.directory / "data" / AUDIT_LOG
    with GatewayProcess(site.config) as gateway, Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        for number, answer in before.items():
            assert client.protect(scans[number], "open") == answer
    with SqliteReader(log) as reader:
        assert verify(reader, [public(site.directory / "keys" / "checkpoint.pub")]).ok
        for answer in before.values():
            record = show(reader, answer.log_index)["record"]
            assert record["receipt_sha256"] == hashlib.sha256(answer.receipt).hexdigest()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
