"""How long a 0.5 MB CT slice takes through the gateway, where the time goes, and what a bare server would take."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from gateway.api.v1 import gateway_pb2 as pb
from gateway.testing import GatewayProcess
from lab import phantoms
from lab.demo.material import BUNDLED, drawn
from lab.demo.site import build
from load import Load, Server, drive
from report import Table, Target, hand_back
from signing import sign
from signing.testing import Hospital

ROUNDS = 3
ALONE, TOGETHER = 40, 120
"""Scans a round: sent by one client, and dealt out to several."""
CLIENTS = 4
DRAWN = 16
"""Slices that are drawn; the others are these with other noise in the lowest bit, so that no two are alike."""

_MODEL = "the model itself"
_RECORDS = "audit log, receipt, ledger"
_WIRE = "gRPC and waiting"


@dataclass(slots=True)
class Subject:
    """One server under load, and what was seen of it in all rounds."""

    name: str
    server: Server
    scrape: Callable[[], Counter[str]]
    """The server's own clock: sums of seconds by metric."""
    alone: list[Load] = field(default_factory=list)
    together: list[Load] = field(default_factory=list)
    own: Counter[str] = field(default_factory=Counter)
    """Seconds by metric, over the calls of the one client."""

    def take(self, hand: list[Path], rest: list[Path]) -> None:
        """One round."""
        before = self.scrape()
        self.alone.append(drive(self.server, hand, clients=1))
        after = self.scrape()
        after.subtract(before)
        self.own.update(after)
        self.together.append(drive(self.server, rest, clients=CLIENTS))

    @property
    def latency(self) -> Load:
        """All calls of the one client."""
        return _joined(self.alone)

    @property
    def rate(self) -> float:
        """Answers in a second under load: median of the rounds."""
        return statistics.median(load.rate for load in self.together)

    def shares(self) -> dict[str, float]:
        """Mean milliseconds of one client's call by where they went; they add up to the mean latency."""
        load = self.latency
        calls = len(load.latencies)
        spent: dict[str, float] = {}
        for document in load.replies:
            for finding in pb.ProtectReply.FromString(document).findings:
                spent[finding.stage] = spent.get(finding.stage, 0.0) + 1000 * finding.seconds / calls
        spent[_MODEL] = 1000 * self.own["scanward_upstream_seconds_sum"] / calls
        protect = 1000 * self.own["scanward_protect_seconds_sum"] / calls
        spent[_RECORDS] = protect - sum(spent.values())
        spent[_WIRE] = 1000 * statistics.mean(load.latencies) - protect
        return spent


def measure() -> Table:
    """Send the same slices to every server in turns."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        site = build(directory / "site", drawn())
        scans = _slices(directory, site.hospital, ROUNDS * (ALONE + TOGETHER))
        model = BUNDLED / "model.onnx"
        with GatewayProcess(site.configuration) as gateway, _bare(None) as hashing, _bare(model) as predicting:
            addresses = gateway.addresses

            def scrape() -> Counter[str]:
                return _sums(addresses.metrics)

            archive = Server(addresses.grpc, "archive", site.token("archive-importer"))
            everything = Server(addresses.grpc, "ct-phantom", site.token("ct-scanner"))
            subjects = (
                Subject("bare: receive, hash", hashing, Counter),
                Subject("Scanward: signatures alone", archive, scrape),
                Subject("bare: receive, hash, run the model", predicting, Counter),
                Subject("Scanward: everything", everything, scrape),
            )
            step = ALONE + TOGETHER
            for start in range(0, len(scans), step):
                for subject in subjects:
                    subject.take(scans[start : start + ALONE], scans[start + ALONE : start + step])
        return _table(subjects, statistics.mean(scan.stat().st_size for scan in scans))


def _table(subjects: tuple[Subject, ...], size: float) -> Table:
    bare, signatures, bare_model, everything = subjects
    rows = []
    for subject in subjects:
        alone, together = subject.latency, _joined(subject.together)
        base = bare_model if subject in (bare_model, everything) else bare
        rows.append(
            [
                subject.name,
                f"{alone.quantile(0.5):.1f} / {alone.quantile(0.99):.1f}",
                f"{together.quantile(0.5):.1f} / {together.quantile(0.99):.1f}",
                f"{subject.rate:.0f}",
                f"{subject.rate / base.rate:.2f}",
            ]
        )
    loaded = _joined(signatures.together)
    spread = loaded.quantile(0.99) / loaded.quantile(0.5)
    share = signatures.rate / bare.rate
    return Table(
        title=f"Protect, slices of {size / 1e6:.2f} MB",
        columns=["server", "1 client, p50 / p99 ms", f"{CLIENTS} clients, p50 / p99 ms", "scans/s", "of bare"],
        rows=rows,
        notes=[
            "Every scan is signed (RSA, SHA-256) and sent once. The bare server receives, hashes, and runs the same "
            "ONNX model on every nth pixel; it verifies nothing and records nothing. Scanward has two durable records "
            "on disk before each answer. Clients are processes of their own on the same machine.",
            f"Where one client's call goes, signatures alone: {_sentence(signatures)}",
            f"Where one client's call goes, everything: {_sentence(everything)}",
        ],
        targets=[
            Target("throughput, signatures alone, of the bare server's", "at least 0.9", f"{share:.2f}", share >= 0.9),
            Target(f"p99 by p50, signatures alone, {CLIENTS} clients", "at most 2", f"{spread:.1f}", spread <= 2.0),
        ],
    )


def _sentence(subject: Subject) -> str:
    spent = subject.shares()
    total = sum(spent.values())
    parts = [f"{name} {ms:.1f} ms ({100 * ms / total:.0f} %)" for name, ms in spent.items() if ms > 0.0]
    return f"{', '.join(parts)}; in all {total:.1f} ms."


def _joined(loads: list[Load]) -> Load:
    return Load(
        [latency for load in loads for latency in load.latencies],
        sum(load.seconds for load in loads),
        [reply for load in loads for reply in load.replies],
    )


def _slices(directory: Path, hospital: Hospital, count: int) -> list[Path]:
    """Signed CT slices of 512 x 512, no two alike."""
    noise = np.random.default_rng(0)
    drawn_slices = [phantoms.draw(seed) for seed in phantoms.seeds("test", DRAWN)]
    signer = hospital.signer("ct")
    paths = []
    for number in range(count):
        phantom = drawn_slices[number % DRAWN]
        lowest = noise.integers(0, 2, phantom.pixels.shape, dtype=np.uint16)
        other = replace(phantom, pixels=phantom.pixels & np.uint16(0xFFFE) | lowest)
        scan = phantoms.to_dicom(other, instance_number=number + 1)  # an instance of its own, or it would be a replay
        path = directory / f"{number:04d}.dcm"
        path.write_bytes(sign(scan, signer=signer, at=datetime.now(UTC)))
        paths.append(path)
    return paths


@contextmanager
def _bare(model: Path | None) -> Iterator[Server]:
    """The bare server as a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("bare_server.py"))]
    if model is not None:
        command += ["--model", str(model)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        try:
            assert process.stdout is not None
            yield Server(f"127.0.0.1:{process.stdout.readline().strip()}")
        finally:
            process.terminate()


def _sums(address: str) -> Counter[str]:
    """Sums of the gateway's histograms of seconds, over all labels."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
        families = list(text_string_to_metric_families(reply.read().decode()))
    sums: Counter[str] = Counter()
    for family in families:
        for sample in family.samples:
            if sample.name.endswith("_seconds_sum"):
                sums[sample.name] += sample.value  # type: ignore[assignment]  # a Counter also adds seconds
    return sums


if __name__ == "__main__":
    hand_back(measure())
