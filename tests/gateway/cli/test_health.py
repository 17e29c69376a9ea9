"""`scanward health` says what the health service says, by its exit code, over plaintext on loopback and mutual TLS."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from gateway.cli import main

Words = health_pb2.HealthCheckResponse


@pytest.fixture
def service() -> Iterator[tuple[str, health.HealthServicer]]:
    """The health service that the gateway serves, alone."""
    servicer = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}", servicer
    server.stop(None).wait()


def exit_code(*arguments: str) -> int:
    return CliRunner().invoke(main, ["health", *arguments]).exit_code


def test_ready_and_alive_are_two_questions(service: tuple[str, health.HealthServicer]) -> None:
    address, servicer = service
    servicer.set("ready", Words.NOT_SERVING)
    assert (exit_code("--address", address), exit_code("--address", address, "--live")) == (1, 0)
    servicer.set("ready", Words.SERVING)
    assert exit_code("--address", address) == 0


def test_no_answer_is_neither_yes_nor_no() -> None:
    assert exit_code("--address", "127.0.0.1:1", "--timeout", "2") == 2


def test_beyond_this_machine_it_wants_a_certificate(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["health", "--address", "gateway.example:8443"])
    assert result.exit_code == 2
    assert "CA certificate" in result.output
