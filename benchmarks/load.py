"""Clients in processes of their own, each with one call in flight, so that a server's speed is its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from time import perf_counter

import grpc

from gateway.api.v1 import gateway_pb2 as pb

METHOD = "/scanward.v1.ProtectionGateway/Protect"
_READY_S_MAX = 60.0
_CALL_S_MAX = 60.0


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server listens, and how it knows the caller."""

    address: str
    route: str = ""
    token: str | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """What the clients saw."""

    latencies: list[float]
    """Seconds, one a call."""
    seconds: float
    """From the first call's start to the last answer."""
    replies: list[bytes]
    """Serialised `ProtectReply`, one a call."""

    @property
    def rate(self) -> float:
        """Answers in a second."""
        return len(self.latencies) / self.seconds

    def quantile(self, q: float) -> float:
        """The latency that a share `q` of the calls did not exceed, in milliseconds."""
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def drive(server: Server, scans: Sequence[Path], *, clients: int) -> Load:
    """Send every scan once, dealt out to that many clients."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(clients)
    with context.Pool(clients, initializer=_take, initargs=(barrier,)) as pool:
        hands = [(server, list(scans[start::clients])) for start in range(clients)]
        results = pool.starmap(_send, hands, chunksize=1)
    began, ended = min(result[0] for result in results), max(result[1] for result in results)
    latencies = [latency for result in results for latency in result[2]]
    return Load(latencies, ended - began, [reply for result in results for reply in result[3]])


_barrier: Barrier


def _take(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603 - a barrier reaches a pool's processes at their start or not at all
    _barrier = barrier


def _send(server: Server, scans: list[Path]) -> tuple[float, float, list[float], list[bytes]]:
    requests = [pb.ProtectRequest(dicom=scan.read_bytes(), route=server.route).SerializeToString() for scan in scans]
    metadata = (("authorization", f"Bearer {server.token}"),) if server.token else ()
    with grpc.insecure_channel(server.address) as channel:
        grpc.channel_ready_future(channel).result(timeout=_READY_S_MAX)
        call = channel.unary_unary(METHOD)
        _barrier.wait(timeout=_READY_S_MAX)
        began = perf_counter()
        latencies, replies = [], []
        for request in requests:
            started = perf_counter()
            replies.append(call(request, timeout=_CALL_S_MAX, metadata=metadata))
            latencies.append(perf_counter() - started)
        return began, perf_counter(), latencies, replies
