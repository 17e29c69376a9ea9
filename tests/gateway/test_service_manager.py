"""A service manager hears when the gateway is ready and when it stops, and its absence stops nothing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gateway.app import service_manager
from gateway.testing import GatewayProcess, Site


def test_hears_of_ready_and_stopping_and_nothing_else(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(60)
        with GatewayProcess(site.config, environment={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as gateway:
            assert manager.recv(64) == b"READY=1"
            assert gateway.stop() == 0
            assert manager.recv(64) == b"STOPPING=1"
        manager.settimeout(0.0)
        with pytest.raises(BlockingIOError):
            manager.recv(64)


def test_an_abstract_name_is_meant_by_an_at_sign(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = f"scanward-test-{tmp_path.name}-{tmp_path.stat().st_ino}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(10)
        service_manager.notify(service_manager.READY)
        assert manager.recv(64) == b"READY=1"


@pytest.mark.parametrize("value", ["", "relative", "/nowhere/at/all", "@nobody-listens"])
def test_nobody_there_to_hear_is_no_error(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", value)
    service_manager.notify(service_manager.READY)
