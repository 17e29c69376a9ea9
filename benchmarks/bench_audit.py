"""What a durable audit record costs, beside a bare fsync of the same bytes, and what it costs to verify a million."""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.log import AuditLog
from gateway.audit.record import Decided, body
from gateway.audit.sqlite import SqliteReader, SqliteSink
from gateway.audit.verify import verify
from gateway.telemetry.metrics import Metrics
from report import Table, hand_back

VERIFIED = 1_000_000
SECONDS = 5.0
"""That each case of appending lasts."""
CALLERS = 64
_AT_ONCE = 50_000
"""Records in the queue while the long log is written."""

RECORD = Decided(
    scan_sha256="5f" * 32,
    sop_instance_digest="c3" * 32,
    bytes=527_000,
    received_at="2026-05-04T12:00:00.000000Z",
    route="ct",
    receiver="grpc",
    source="ct-1",
    enrolled=True,
    modality="CT",
    study_held=0,
    disposition="admit",
    reasons=(),
    unsafe=(),
    rules=(),
    instead_of=None,
    findings=(
        {"stage": "signature", "outcome": "passed", "reason": "ok"},
        {"stage": "preprocess", "outcome": "passed", "reason": "ok"},
        {"stage": "detection", "outcome": "passed", "reason": "ok", "p_value": 0.37, "p_values": {"uad": 0.4}},
    ),
    examination_sha256="a7" * 32,
    digests=dict.fromkeys(("model", "profile", "artefact", "policy", "trust"), "1b" * 32),
)


def measure() -> Table:
    """Append with one caller and with many, each in turns with bare files; then write a long log and verify it."""
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        rows = []
        for callers in (1, CALLERS):
            rows.append(_row("fsync of a file of its own", callers, _timed(_fsyncs(root), callers)))
            with _open(root / f"{callers}.db") as log:
                rows.append(
                    _row("audit record, durable", callers, _timed(lambda: log.append(RECORD).result(), callers))
                )
        written, read, verified, size = _long_log(root)
    for name, seconds in (("written, in a queue", written), ("read, no more", read), ("verified", verified)):
        rows.append([f"a log of {VERIFIED:,} records {name}", "1", f"{VERIFIED / seconds:,.0f}", f"{seconds:.0f} s"])
    return Table(
        title="The audit log in SQLite",
        columns=["work", "callers", "records/s", "p50 / p99, ms"],
        rows=rows,
        notes=[
            f"A record of {len(body(RECORD, datetime.now(UTC)))} bytes is appended and waited for until it is on disk; "
            f"each caller is a thread, and appends one after another for {SECONDS:g} s. Callers that come together "
            "share one commit. The file beside it is written and synchronised once for each record, a file for each "
            f"caller. The long log takes {size / 1e9:.1f} GB; verifying reads every record, builds the tree and checks "
            "each signed checkpoint.",
            f"Load average meanwhile: {load[0]:.1f}, {load[1]:.1f}, {load[2]:.1f} over 1, 5, 15 minutes, "
            f"{len(os.sched_getaffinity(0))} cores.",
        ],
    )


@contextmanager
def _open(path: Path, queue_max: int = 8192) -> Iterator[AuditLog]:
    log = AuditLog(
        SqliteSink(path),
        Ed25519PrivateKey.from_private_bytes(bytes(32)),
        metrics=Metrics(),
        checkpoint_file=path.with_suffix(".note"),
        queue_max=queue_max,
    )
    try:
        yield log
    finally:
        log.close()


def _fsyncs(root: Path) -> Callable[[], object]:
    """Writes the record's bytes to a file of the thread's own, and waits for the disk."""
    own, entry = threading.local(), body(RECORD, datetime.now(UTC))

    def append() -> None:
        if not hasattr(own, "file"):
            own.file = (root / f"{threading.get_ident()}.plain").open("ab", buffering=0)
        own.file.write(entry)
        os.fsync(own.file.fileno())

    return append


def _timed(append: Callable[[], object], callers: int) -> tuple[list[float], float]:
    """Seconds of each call, and of all of it."""
    times: list[list[float]] = [[] for _ in range(callers)]
    begin = threading.Barrier(callers + 1)

    def call(own: list[float]) -> None:
        append()
        begin.wait()
        until = perf_counter() + SECONDS
        while (started := perf_counter()) < until:
            append()
            own.append(perf_counter() - started)

    threads = [threading.Thread(target=call, args=(own,)) for own in times]
    for thread in threads:
        thread.start()
    begin.wait()
    started = perf_counter()
    for thread in threads:
        thread.join()
    return [seconds for own in times for seconds in own], perf_counter() - started


def _row(work: str, callers: int, measured: tuple[list[float], float]) -> list[str]:
    times, seconds = measured
    p50, p99 = statistics.median(times), statistics.quantiles(times, n=100)[98]
    return [work, str(callers), f"{len(times) / seconds:,.0f}", f"{1000 * p50:.2f} / {1000 * p99:.2f}"]


def _long_log(root: Path) -> tuple[float, float, float, int]:
    """Seconds to write a long log, to read it and to verify it; and its bytes on disk."""
    path, started = root / "long.db", perf_counter()
    with _open(path, 2 * _AT_ONCE) as log:
        last: Future[int] | None = None
        for number in range(VERIFIED):
            future = log.append(replace(RECORD, scan_sha256=f"{number:064x}"))
            if number % _AT_ONCE == 0:
                if last is not None:
                    last.result()
                last = future
        future.result()
    written = perf_counter() - started
    with SqliteReader(path) as reader:
        started = perf_counter()
        assert sum(1 for _ in reader.entries()) == VERIFIED
        read = perf_counter() - started
        started = perf_counter()
        report = verify(reader, [Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()])
        verified = perf_counter() - started
    if not report.ok or report.records != VERIFIED:
        raise SystemExit(f"the log that was written does not verify: {report.detail}")
    return written, read, verified, path.stat().st_size


if __name__ == "__main__":
    hand_back(measure())
