"""A model server that hangs: its callers hear so in their time, nobody else waits, and each scan has one answer."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.client.client import Client, ClientError
from gateway.testing import GatewayProcess, Site

CT = Path(str(get_testdata_file("CT_small.dcm")))
SERVER = Path(__file__).parents[1] / "simulators" / "kserve_server.py"


@pytest.fixture
def server(site: Site, tmp_path: Path) -> Iterator[tuple[str, int, Path]]:
    """Address, process id, and the journal of what it answered."""
    journal = tmp_path / "journal"
    journal.touch()
    command = [sys.executable, str(SERVER), str(site.directory / "small" / "model.onnx"), str(journal)]
    with subprocess.Popen([*command, "--address", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process.pid, journal
        process.kill()


def scan(number: int) -> bytes:
    """The preamble is free: another scan of the same image."""
    dataset = dcmread(CT)
    dataset.preamble = number.to_bytes(128, "big")
    dataset.save_as(buffer := io.BytesIO())
    return buffer.getvalue()


def test_a_hanging_server_delays_nobody_else_and_answers_once(
    site: Site, server: tuple[str, int, Path], served_elsewhere: Callable[[str, str], Path]
) -> None:
    address, pid, journal = server
    with (
        GatewayProcess(served_elsewhere(address, "slow")) as gateway,
        Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client,
    ):
        first = client.protect(scan(1), "remote")
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(ClientError) as caught:
                client.protect(scan(2), "remote", timeout_s=5.0)
            beside = client.protect(scan(3), "ct")
            again = client.protect(scan(1), "remote")
        finally:
            os.kill(pid, signal.SIGCONT)
        late = client.protect(scan(2), "remote")
        repeated = client.protect(scan(2), "remote")

    assert caught.value.status in {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
    assert beside.prediction is not None
    assert again == first
    assert late.prediction is not None
    assert repeated == late
    assert set(journal.read_text().split()) == {f"{each.scan_sha256}-admit" for each in (first, late)}
