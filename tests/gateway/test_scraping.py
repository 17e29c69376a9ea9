"""Figures leave this machine over TLS, or because the configuration says that it is unsafe."""

from __future__ import annotations

import http.client
import socket
import ssl
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.errors import ConfigError
from gateway.receivers.scraping import CONNECTIONS_MAX, MetricsDoor
from gateway.settings.doors import MetricsConfig, TlsConfig
from gateway.telemetry.metrics import Metrics
from gateway.testing import write_certificate
from waiting import until


@pytest.fixture
def tls(tmp_path: Path) -> TlsConfig:
    """A server's and a client's certificate of one authority."""
    authority = write_certificate(tmp_path, "ca", None)
    for name in ("server", "prometheus"):
        write_certificate(tmp_path, name, authority)
    return TlsConfig(
        certificate=tmp_path / "server.pem", private_key=tmp_path / "server.key", client_ca=tmp_path / "ca.pem"
    )


def door(tls: TlsConfig | None, address: str = "127.0.0.1:0") -> MetricsDoor:
    return MetricsDoor(MetricsConfig(address=address, tls=tls), Metrics().registry)


def scrape(address: str, folder: Path, *, certificate: str | None = "prometheus") -> str:
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if certificate is not None:
        context.load_cert_chain(folder / f"{certificate}.pem", folder / f"{certificate}.key")
    connection = http.client.HTTPSConnection(address, timeout=30, context=context)
    connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


def test_whoever_shows_a_certificate_reads_the_figures(tls: TlsConfig, tmp_path: Path) -> None:
    with door(tls) as open_door:
        assert "scanward_build_info" in scrape(open_door.address, tmp_path)


def test_without_a_certificate_there_are_none_where_one_is_asked_for(tls: TlsConfig, tmp_path: Path) -> None:
    with door(tls) as open_door, pytest.raises(OSError, match=r"(?i)certificate required|reset|EOF"):
        scrape(open_door.address, tmp_path, certificate=None)
    with door(tls.model_copy(update={"client_ca": None})) as open_door:
        assert "scanward_build_info" in scrape(open_door.address, tmp_path, certificate=None)


def test_another_certificate_is_taken_while_it_runs(tls: TlsConfig, tmp_path: Path) -> None:
    with door(tls) as open_door:
        assert scrape(open_door.address, tmp_path)
        other = tmp_path / "other"
        other.mkdir()
        authority = write_certificate(other, "ca", None)
        for name in ("server", "prometheus"):
            write_certificate(other, name, authority)
        for name in ("server.pem", "server.key", "ca.pem"):
            (other / name).replace(tmp_path / name)
        (other / "ca.pem").write_bytes((tmp_path / "ca.pem").read_bytes())
        time.sleep(1.1)  # handshakes look at the files once a second
        assert "scanward_build_info" in scrape(open_door.address, other)


def test_connections_that_only_wait_are_few_and_do_not_stay(tls: TlsConfig, tmp_path: Path) -> None:
    with door(tls) as open_door:
        host, _, port = open_door.address.rpartition(":")
        waiting = [socket.create_connection((host, int(port)), timeout=30) for _ in range(CONNECTIONS_MAX + 1)]
        assert waiting[-1].recv(1) == b""  # the one too many is hung up on
        for connection in waiting:
            connection.close()

        def answered() -> bool:
            try:
                return "scanward_build_info" in scrape(open_door.address, tmp_path)
            except OSError:
                return False

        until(answered)


@pytest.mark.parametrize("address", ["0.0.0.0:9464", "192.0.2.1:9464", "metrics.example:9464", "[::]:9464"])
def test_off_loopback_it_is_tls_or_named_unsafe(address: str, tls: TlsConfig) -> None:
    with pytest.raises(ValidationError, match="unsafe_plaintext_metrics = true, because"):
        MetricsConfig(address=address)
    assert MetricsConfig(address=address, tls=tls).address == address
    assert MetricsConfig(address=address, unsafe_plaintext_metrics=True).address == address
    with pytest.raises(ValidationError, match="not both"):
        MetricsConfig(address=address, tls=tls, unsafe_plaintext_metrics=True)


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.1:", ":9090", "127.0.0.1:http", "127.0.0.1:70000"])
def test_an_address_that_is_none_is_a_mistake(address: str) -> None:
    with pytest.raises(ValidationError, match="HOST:PORT"):
        MetricsConfig(address=address)


def test_an_address_in_use_is_a_configuration_error() -> None:
    with door(None) as first, pytest.raises(ConfigError, match=first.address):
        door(None, first.address)
