"""Whether ten thousand idle connections and slow senders stop honest ones: `make soak` runs it, tests a short form."""

from __future__ import annotations

import argparse
import json
import resource
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
from pydicom.data import get_testdata_file

from gateway.api.v1 import gateway_pb2 as pb
from gateway.api.v1 import gateway_pb2_grpc as rpc
from gateway.client.client import Client
from gateway.testing import GatewayProcess, Site

CT = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What a client of HTTP/2 begins with (RFC 9113, 3.4), and an empty SETTINGS frame."""


@contextmanager
def idle(address: str, count: int, *, greeting: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that say the greeting and nothing more."""
    host, _, port = address.rpartition(":")
    with ExitStack() as closing:
        connections = []
        for _ in range(count):
            connection = closing.enter_context(socket.create_connection((host, int(port)), 30))
            connection.sendall(greeting)
            connections.append(connection)
        yield connections


@contextmanager
def slow(address: str, count: int, token: str | None) -> Iterator[None]:
    """So many calls of one caller, or of strangers, that begin and send no message."""
    done = threading.Event()

    def nothing() -> Iterator[pb.ProtectChunk]:
        done.wait()
        yield from ()

    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub = rpc.ProtectionGatewayStub(channel)
        for _ in range(count):
            stub.ProtectStream.future(nothing(), metadata=metadata)
        try:
            yield
        finally:
            done.set()


def ask(address: str, token: str, count: int) -> list[float]:
    """Seconds that each of so many honest calls takes, one after the other; raises where one is not answered."""
    seconds = []
    with Client(address, token=token) as client:
        for _ in range(count):
            started = time.perf_counter()
            assert client.protect(CT, "open", timeout_s=30.0).admitted
            seconds.append(time.perf_counter() - started)
    return seconds


def site_with_shares(directory: Path) -> Site:
    """A site on which one caller may occupy half of the threads."""
    site = Site.make(directory)
    site.config.write_text(site.config.read_text().replace("calls_share = 1.0", "calls_share = 0.5"))
    return site


def main() -> None:
    """Ask alone, then in the crowd, and print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=200)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory() as directory:
        site = site_with_shares(Path(directory, "site"))
        with GatewayProcess(site.config) as gateway, ExitStack() as crowd:
            address, honest = gateway.addresses.grpc, site.tokens["reviewer"]
            alone = ask(address, honest, given.calls)
            half = given.connections // 2
            crowd.enter_context(idle(address, given.connections - half, greeting=PREFACE))
            crowd.enter_context(idle(address, half, greeting=b""))
            crowd.enter_context(slow(address, 16, site.tokens["scanner"]))
            crowd.enter_context(slow(address, 16, None))
            crowded = ask(address, honest, given.calls)
            peak = gateway.peak_bytes()[gateway.pid]
    figures = {
        name: {"p50_ms": 1000 * statistics.median(times), "p99_ms": 1000 * statistics.quantiles(times, n=100)[98]}
        for name, times in (("alone", alone), ("in_the_crowd", crowded))
    }
    print(json.dumps({"connections": given.connections, **figures, "gateway_peak_mib": peak >> 20}, indent=1))


if __name__ == "__main__":
    main()
