"""A real Prometheus that scrapes a real gateway, fed with the demo's scans."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from gateway.client.client import Client, ClientError
from gateway.testing import GatewayProcess, write_certificate
from lab.demo.rows import ROWS
from waiting import until

ROOT = Path(__file__).parents[2]
METRICS_TLS = """
[metrics.tls]
certificate = "../monitoring/metrics.pem"
private_key = "../monitoring/metrics.key"
client_ca = "../monitoring/ca.pem"
"""


class Prometheus:
    """One server, asked over its HTTP API."""

    def __init__(self, address: str, target: str, monitoring: Path) -> None:
        self.address = address
        self._target = target
        self._monitoring = monitoring

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Series of an instant query; each has `metric` and `value`."""
        found = self._get("query?" + urllib.parse.urlencode({"query": expression}))["data"]["result"]
        assert isinstance(found, list)
        return found

    def rules(self) -> list[dict[str, Any]]:
        """Every rule, with its health as of the last evaluation."""
        groups = self._get("rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def figures(self) -> str:
        """What it scrapes, scraped once more with its certificate."""
        context = ssl.create_default_context(cafile=self._monitoring / "ca.pem")
        context.load_cert_chain(self._monitoring / "prometheus.pem", self._monitoring / "prometheus.key")
        with urllib.request.urlopen(f"https://{self._target}/metrics", timeout=20, context=context) as reply:
            return str(reply.read().decode())

    def _get(self, what: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.address}/api/v1/{what}", timeout=20) as reply:
            document = json.load(reply)
        assert document["status"] == "success", document
        return dict(document)


@pytest.fixture(scope="session")
def prometheus(
    kept_demo: tuple[Path, subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """It has seen a gateway answer scans of every disposition, twice, and one that its worker was too slow for."""
    for program in ("prometheus", "promtool"):
        if shutil.which(program) is None:
            pytest.skip("needs prometheus")
    directory = tmp_path_factory.mktemp("observed")
    hospital = directory / "hospital"
    shutil.copytree(kept_demo[0], hospital)
    configuration = hospital / "scanward.toml"
    # The same scans again are to be examined again, not answered from memory.
    text = configuration.read_text().replace('directory = "data"', 'directory = "observed"\nledger_days_max = 1e-7')
    (directory / "monitoring").mkdir()
    authority = write_certificate(directory / "monitoring", "ca", None)
    for name in ("metrics", "prometheus"):
        write_certificate(directory / "monitoring", name, authority)
    configuration.write_text(text + METRICS_TLS)
    with (
        GatewayProcess(configuration) as gateway,
        scraping(gateway.addresses.metrics, directory) as server,
    ):
        until(lambda: bool(server.query("scanward_ready == 1")))
        send_all(hospital, gateway)
        recorded = counted(server)
        let_one_expire(hospital, gateway)
        send_all(hospital, gateway)
        until(lambda: counted(server) > recorded)
        yield server


def counted(server: Prometheus) -> float:
    return sum(float(series["value"][1]) for series in server.query("scanward_audit_records_total"))


def send_all(hospital: Path, gateway: GatewayProcess) -> None:
    """Every row of the demo's table."""
    dispositions = set()
    for row in ROWS:
        token = (hospital / "tokens" / row.source).read_text().strip()
        with Client(gateway.addresses.grpc, token=token) as client:
            dispositions.add(client.protect(hospital / "scans" / f"{row.name}.dcm", row.route).disposition)
    assert dispositions == {"admit", "admit_denoised", "quarantine", "reject"}
    time.sleep(2.5)  # two scrapes


def let_one_expire(hospital: Path, gateway: GatewayProcess) -> None:
    """A scan whose caller's deadline passes while the worker stands still."""
    (worker,) = [pid for pid in gateway.peak_bytes() if b"engine.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    token = (hospital / "tokens" / "old-modality").read_text().strip()
    os.kill(worker, signal.SIGSTOP)
    try:
        with Client(gateway.addresses.grpc, token=token) as client, suppress(ClientError):
            client.protect(hospital / "scans" / "unsigned-clean.dcm", "legacy", timeout_s=1.0)
    finally:
        os.kill(worker, signal.SIGCONT)
    time.sleep(2.5)


@contextmanager
def scraping(target: str, directory: Path) -> Iterator[Prometheus]:
    """Prometheus with the deployment's own rules, every second."""
    shutil.copy(ROOT / "deploy" / "prometheus" / "scanward.rules.yml", directory)
    configuration = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    configuration = re.sub(r"_interval: \w+", "_interval: 1s", configuration).replace("gateway:9464", target)
    configuration = configuration.replace("/etc/prometheus-tls", str(directory / "monitoring"))
    configuration = configuration.replace("gateway.hospital.example", "127.0.0.1")
    (directory / "prometheus.yml").write_text(configuration)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/tsdb"]
    with (
        (directory / "prometheus.log").open("wb") as log,
        subprocess.Popen([*command, f"--web.listen-address={address}"], stdout=log, stderr=log) as process,
    ):
        try:
            until(lambda: answers(address))
            yield Prometheus(address, target, directory / "monitoring")
        finally:
            process.terminate()


def answers(address: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://{address}/-/ready", timeout=2) as reply:
        return bool(reply.status == 200)
    return False
