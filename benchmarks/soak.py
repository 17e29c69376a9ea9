"""A gateway for half an hour at 70 % of what it can do: is memory flat, are descriptors given back? `make soak`.

`--seconds` says how long, `--plot` draws what was seen. Exit 1: something grew, or a call failed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import queue
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from gateway.client.client import Client, ClientError
from gateway.testing import GatewayProcess
from lab.demo.material import drawn
from lab.demo.site import Site, build
from signing import read

LOAD = 0.7
CLIENTS = 8
DRAWN = 16
CAPACITY_SHARE = 0.1
"""Of the time under load; before it, so long the gateway is asked for all that it can do."""
MIB = 1 << 20
GROWTH_MAX, GROWTH_BYTES_MIN = 0.05, 24 * MIB
"""Memory of the last quarter over that of the second: this share, or where that is less, this much."""
DESCRIPTORS_MAX = 8
"""More at the end than in the second quarter: connections come and go."""
SAMPLES = 400
GRACE_S = 2.0
"""For the scans that fell due last to be taken up."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the gateway takes at one moment."""

    at: float
    """Seconds since the load began."""
    gateway_bytes: int
    """Resident memory of the gateway's own process."""
    others_bytes: int
    """Of its detection worker and decoder."""
    descriptors: int
    """Open in the gateway's process."""


@dataclass(frozen=True, slots=True)
class Soak:
    """Everything that was seen."""

    capacity: float
    """Scans a second, sent as fast as they are answered."""
    rate: float
    """Scans a second, as they were sent."""
    samples: list[Sample]
    latencies: list[tuple[float, float]]
    """When a scan was due, and how long after that its answer came; seconds."""
    failures: int

    def growth(self, of: Callable[[Sample], int]) -> tuple[float, float]:
        """Median of the second quarter and of the last."""
        quarter = max(1, len(self.samples) // 4)
        values = [float(of(sample)) for sample in self.samples]
        return statistics.median(values[quarter : 2 * quarter]), statistics.median(values[-quarter:])

    @property
    def problems(self) -> list[str]:
        """What must not be."""
        found = [f"{self.failures} calls failed"] if self.failures else []
        for name, of in (("gateway", lambda s: s.gateway_bytes), ("worker", lambda s: s.others_bytes)):
            before, after = self.growth(of)
            if after - before > max(GROWTH_MAX * before, GROWTH_BYTES_MIN):
                found.append(f"the {name}'s memory grew from {before / MIB:.0f} to {after / MIB:.0f} MiB")
        before, after = self.growth(lambda s: s.descriptors)
        if after - before > DESCRIPTORS_MAX:
            found.append(f"open descriptors grew from {before:.0f} to {after:.0f}")
        return found

    def document(self) -> dict[str, object]:
        """For a machine: figures, no samples."""
        ordered = sorted(latency for _, latency in self.latencies)
        quantile = {q: 1000 * ordered[min(len(ordered) - 1, int(q * len(ordered)))] for q in (0.5, 0.99)}
        return {
            "seconds": round(self.samples[-1].at), "scans": len(self.latencies), "failures": self.failures,
            "capacity_per_s": round(self.capacity, 1), "rate_per_s": round(self.rate, 1),
            "p50_ms": round(quantile[0.5], 1), "p99_ms": round(quantile[0.99], 1),
            "gateway_mib": [round(value / MIB) for value in self.growth(lambda s: s.gateway_bytes)],
            "worker_mib": [round(value / MIB) for value in self.growth(lambda s: s.others_bytes)],
            "descriptors": [round(value) for value in self.growth(lambda s: s.descriptors)],
            "problems": self.problems,
        }  # fmt: skip


def soak(seconds: float, directory: Path) -> Soak:
    """Find out what the gateway can do, then send 70 % of it for that long."""
    material = drawn()
    site = build(directory / "site", material)
    drawn_scans = [material.specimen(i).as_dicom(material.specimen(i).stored) for i in range(DRAWN)]
    with (
        GatewayProcess(site.configuration, log=directory / "gateway.log") as gateway,
        _clients(site, gateway) as send,
    ):
        scans = _endless(_admitted(site, gateway, drawn_scans))
        capacity = _capacity(send, scans, CAPACITY_SHARE * seconds)
        return _steadily(send, scans, capacity, seconds, lambda at: _sample(gateway, at))


def _admitted(site: Site, gateway: GatewayProcess, scans: list[bytes]) -> list[bytes]:
    """Those that are not held: one held scan sent over and over would show the limit on held scans and nothing else."""
    with Client(gateway.addresses.grpc, token=site.token("old-modality")) as client:
        return [scan for scan in scans if client.protect(scan, "legacy", timeout_s=60.0).admitted]


def _endless(originals: list[bytes]) -> Iterator[bytes]:
    """The slices over and over, each time with other bytes in two pixels of the corner: an answer is given once."""
    places = [pixels.offset for each in originals if (pixels := read(each).get(0x7FE00010)) is not None]
    for number in itertools.count():
        which = number % len(originals)
        at = places[which]
        data = bytearray(originals[which])
        for index in range(4):
            data[at + 2 * index] ^= (number >> (4 * index)) & 0x0F  # the lowest bits of four stored values
        yield bytes(data)


@contextmanager
def _clients(site: Site, gateway: GatewayProcess) -> Iterator[Callable[[bytes], bool]]:
    """A function that sends one scan, and tells whether it was answered."""
    with Client(gateway.addresses.grpc, token=site.token("old-modality")) as client:

        def send(scan: bytes) -> bool:
            try:
                client.protect(scan, "legacy", timeout_s=60.0)
            except ClientError as error:
                print(error, file=sys.stderr)
                return False
            return True

        yield send


def _capacity(send: Callable[[bytes], bool], scans: Iterator[bytes], seconds: float) -> float:
    """Answers a second with `CLIENTS` calls in flight, once warm."""
    until = time.monotonic() + seconds
    half = until - seconds / 2
    lock = threading.Lock()

    def run(_: int) -> int:
        answered = 0
        while time.monotonic() < until:
            with lock:
                scan = next(scans)
            send(scan)
            answered += time.monotonic() >= half
        return answered

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(run, range(CLIENTS))) / (seconds / 2)


def _left_over(due: queue.Queue[tuple[float, bytes] | None]) -> int:
    """How many scans nobody has taken up: a gateway that has fallen behind is not waited for."""
    until = time.monotonic() + GRACE_S
    while not due.empty() and time.monotonic() < until:
        time.sleep(0.01)
    left = 0
    with suppress(queue.Empty):
        while True:
            due.get_nowait()
            left += 1
    return left


def _steadily(
    send: Callable[[bytes], bool],
    scans: Iterator[bytes],
    capacity: float,
    seconds: float,
    sample: Callable[[float], Sample],
) -> Soak:
    """Scans fall due at a fixed rate, whether the last was answered or not, as modalities send them."""
    rate = LOAD * capacity
    due: queue.Queue[tuple[float, bytes] | None] = queue.Queue()
    latencies: list[tuple[float, float]] = []
    failures: list[float] = []
    began = time.monotonic()

    def work() -> None:
        while (item := due.get()) is not None:
            at, scan = item
            if send(scan):
                latencies.append((at, time.monotonic() - began - at))
            else:
                failures.append(at)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(2 * CLIENTS)]
    for worker in workers:
        worker.start()
    samples: list[Sample] = []
    for number in range(int(rate * seconds)):
        at = number / rate
        time.sleep(max(0.0, began + at - time.monotonic()))
        due.put((at, next(scans)))
        if at >= len(samples) * seconds / SAMPLES:
            samples.append(sample(at))
    failures += [seconds] * _left_over(due)
    for _ in workers:
        due.put(None)
    for worker in workers:
        worker.join()
    samples.append(sample(time.monotonic() - began))
    return Soak(capacity, rate, samples, latencies, len(failures))


def _sample(gateway: GatewayProcess, at: float) -> Sample:
    pids = gateway.peak_bytes()
    memory = {pid: _resident(pid) for pid in pids}
    descriptors = len(list(Path(f"/proc/{gateway.pid}/fd").iterdir()))
    own = memory.pop(gateway.pid, 0)
    return Sample(at, own, sum(memory.values()), descriptors)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
    except OSError:
        return 0  # a decoder that has done its work


def draw(found: Soak, path: Path) -> None:
    """Memory, descriptors and latency over time, one above the other."""
    import matplotlib as mpl  # noqa: PLC0415 - only where it is asked for

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415 - as above

    minutes = [sample.at / 60 for sample in found.samples]
    figure, (memory, descriptors, latency) = pyplot.subplots(3, 1, sharex=True, figsize=(9, 8), layout="constrained")
    memory.plot(minutes, [sample.gateway_bytes / MIB for sample in found.samples], label="gateway")
    memory.plot(minutes, [sample.others_bytes / MIB for sample in found.samples], label="worker and decoder")
    memory.set(ylabel="resident memory, MiB", ylim=(0, None))
    memory.legend(loc="lower right")
    descriptors.plot(minutes, [sample.descriptors for sample in found.samples])
    descriptors.set(ylabel="open descriptors", ylim=(0, None))
    latency.scatter([at / 60 for at, _ in found.latencies], [1000 * took for _, took in found.latencies], s=1)
    latency.set(ylabel="answer after, ms", xlabel="minutes", yscale="log")
    figure.suptitle(f"{found.rate:.0f} scans a second, 70 % of {found.capacity:.0f}; {len(found.latencies)} scans")
    figure.savefig(path, dpi=110)


def main() -> int:
    """Soak, say what was seen, draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        found = soak(arguments.seconds, Path(directory))
    if arguments.plot is not None:
        draw(found, arguments.plot)
    print(json.dumps(found.document()))
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
