"""The audit log: a record is durable before its future is resolved, and many share one fsync.

One thread writes. It takes what has gathered while the last commit ran, puts it into one transaction, and resolves the
futures after the fsync: the busier the gateway, the more records share a commit. Where a commit fails, its records'
futures raise AuditError and nothing that depends on them may leave; the next commit starts from what the sink holds.
What is signed is the tree as this process saw it grow, so that a record changed in the sink never gets a signature.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import UTC, datetime
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway import durable
from gateway.audit.checkpoint import Checkpoint, CheckpointError
from gateway.audit.record import Record, body
from gateway.audit.sinks import AuditSink, LogReader, Turn, stored_node
from gateway.audit.tree import Edge, Entry
from gateway.errors import AuditError, ConfigError, GatewayError, Overloaded
from gateway.telemetry.metrics import Metrics

QUEUE = "audit"
"""Name of the queue in `scanward_queue_depth`."""

_COMMIT_MAX = 512
"""Records in one transaction; bounds how long the first of them waits for the last."""

_RETRY_S = 0.5
"""How soon a log that failed is tried again although nobody writes."""

_log = structlog.get_logger(__name__)
_Waiting = tuple[bytes, "Future[int]"]


class AuditLog:
    """Appends records to a Merkle tree with signed checkpoints; thread-safe."""

    def __init__(
        self,
        sink: AuditSink,
        checkpoint_key: Ed25519PrivateKey,
        *,
        metrics: Metrics,
        checkpoint_file: Path,
        retired: Sequence[Ed25519PublicKey] = (),
        checkpoint_records: int = 1000,
        checkpoint_s: float = 60.0,
        queue_max: int = 8192,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        carry_off: Callable[[bytes, float], object] = lambda note, signed_at: None,
    ) -> None:
        """Check the end of the log that is there, sign it, and start writing.

        Args:
            sink: where the entries go; closed by `close`.
            checkpoint_key: signs checkpoints; nothing else may be signed with it.
            metrics: told of records, queue and checkpoints.
            checkpoint_file: replaced with each new checkpoint, to be carried off this machine.
            retired: public halves of earlier checkpoint keys.
            checkpoint_records: at most about this many records stand without a checkpoint over them,
            checkpoint_s: and none for longer than this.
            queue_max: records that may wait; a gateway with fewer handler threads never reaches it.
            clock: aware time for records and checkpoints.
            carry_off: told of each checkpoint and when it was signed (seconds since the epoch); must not wait.

        Raises:
            ConfigError: the log's end does not follow from its last checkpoint, or from the one in the file.
        """
        self._sink = sink
        self._key = checkpoint_key
        self._metrics = metrics
        self._file = checkpoint_file
        self._checkpoint_records = checkpoint_records
        self._checkpoint_s = checkpoint_s
        self._clock = clock
        self._carry_off = carry_off
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(queue_max)
        self._door = threading.Lock()
        self._closed = False
        self._failed = False
        self._seal_at: float | None = None
        try:
            self._edge, self._sealed = _resume(sink, checkpoint_file, [checkpoint_key.public_key(), *retired])
            self._seal()
        except GatewayError as error:
            sink.close()
            raise ConfigError([f"the audit log cannot go on: {error}"]) from None
        self._writer = threading.Thread(target=self._write, name="audit", daemon=True)
        self._writer.start()

    def append(self, record: Record) -> Future[int]:
        """Queue a record; the future gives its index once it is durable, or raises AuditError.

        Raises:
            Overloaded: the queue is full.
            AuditError: the log is closed.
        """
        waiting: Future[int] = Future()
        waiting.set_running_or_notify_cancel()  # a caller who gives up cannot take the record back
        entry = body(record, self._clock())
        with self._door:
            if self._closed:
                raise AuditError("the audit log is closed")
            try:
                self._queue.put_nowait((entry, waiting))
            except queue.Full:
                raise Overloaded("the audit log's queue is full") from None
        return waiting

    @property
    def healthy(self) -> bool:
        """Whether the last commit succeeded and more are taken."""
        return not (self._closed or self._failed)

    @property
    def size(self) -> int:
        """How many records are durable."""
        return self._edge.size

    @property
    def sealed(self) -> int:
        """How many records are under a signed checkpoint."""
        return self._sealed

    def prune(self, first: int, end: int) -> None:
        """Remove records, for `retention`, which has recorded that they may go; raises AuditError."""
        self._sink.prune(first, end)

    def reader(self) -> LogReader:
        """The log as it is now, to be read from any thread and closed; raises AuditError."""
        return self._sink.reader()

    def close(self) -> None:
        """Write what waits, sign the end, and let go of the sink."""
        with self._door:
            if self._closed:
                return
            self._closed = True
        self._queue.put(None)
        self._writer.join()
        self._sink.close()

    # -- the writer's thread --

    def _write(self) -> None:
        open_ = True
        while open_:
            batch, open_ = self._next_batch()
            if batch:
                self._commit(batch)
            elif self._failed and open_:
                self._try_again()
            due = self._seal_at is not None and time.monotonic() >= self._seal_at
            if due or not open_ or self._edge.size - self._sealed >= self._checkpoint_records:
                self._try_seal()

    def _next_batch(self) -> tuple[list[_Waiting], bool]:
        """What waits now, at most `_COMMIT_MAX`; nothing when a checkpoint or a new try fell due; False at the end."""
        batch: list[_Waiting] = []
        patience = None if self._seal_at is None else max(0.0, self._seal_at - time.monotonic())
        if self._failed:
            patience = _RETRY_S
        try:
            item = self._queue.get(timeout=patience)
            while item is not None:
                batch.append(item)
                if len(batch) == _COMMIT_MAX:
                    break
                item = self._queue.get_nowait()
        except queue.Empty:
            return batch, True
        finally:
            self._metrics.queue(QUEUE, self._queue.qsize())
        return batch, item is not None

    def _commit(self, batch: Sequence[_Waiting]) -> None:
        entries: list[Entry] = []
        try:
            with self._sink.turn() as turn:
                edge = self._followed(turn)
                for entry_body, _ in batch:
                    edge, entry = edge.entry(entry_body)
                    entries.append(entry)
                turn.append(entries)
        except Exception as error:  # whatever it was, every waiting caller must hear of it
            self._failed = True
            reason = str(error) if isinstance(error, AuditError) else f"the sink failed with {type(error).__name__}"
            _log.error("audit_write_failed", error=type(error).__name__, records=len(batch))
            for _, waiting in batch:
                waiting.set_exception(AuditError(reason))
            return
        self._failed = False
        self._edge = edge
        if self._seal_at is None:
            self._seal_at = time.monotonic() + self._checkpoint_s
        self._metrics.audit_records(len(entries))
        for entry, (_, waiting) in zip(entries, batch, strict=True):
            waiting.set_result(entry.index)

    def _followed(self, turn: Turn) -> Edge:
        """The edge of what is durable: another replica, or a commit whose fate was never heard, may have added to it.

        It is followed leaf by leaf, so that whatever gets a signature continues what this process saw before.
        """
        size = turn.size()
        if size < self._edge.size:
            raise AuditError(f"the audit log has lost records: {self._edge.size} were there, {size} are")
        edge = self._edge
        if size > edge.size:
            for leaf in turn.leaves(edge.size):
                edge, _ = edge.grown(leaf)
        return edge

    def _try_again(self) -> None:
        """After a failure, see with a checkpoint whether the sink works: an unready gateway is sent no records."""
        try:
            self._seal()
        except AuditError:
            return
        self._failed = False

    def _try_seal(self) -> None:
        """A checkpoint that fails leaves the records as durable as they were: say so, and try again later."""
        try:
            self._seal()
        except AuditError as error:
            _log.error("audit_checkpoint_failed", error=type(error).__name__)
            self._seal_at = time.monotonic() + self._checkpoint_s

    def _seal(self) -> None:
        """Sign the end of the log, in the log and in the file beside it."""
        now = self._clock()
        with self._sink.turn() as turn:
            edge = self._followed(turn)
            time_ = now.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
            note = Checkpoint(self._sink.origin, edge.size, edge.root, time_).sign(self._key)
            if edge.size != self._sealed or self._failed:
                turn.seal(edge.size, note)
        self._edge, self._sealed = edge, edge.size
        try:
            durable.replace(self._file, note)
        except OSError as error:
            raise AuditError(f"the checkpoint file cannot be written: {type(error).__name__}") from None
        self._seal_at = None
        self._metrics.checkpointed_at(now.timestamp())
        self._carry_off(note, now.timestamp())


def _resume(sink: AuditSink, file: Path, keys: Sequence[Ed25519PublicKey]) -> tuple[Edge, int]:
    """The edge of the log, and how many entries its last checkpoint covers (-1: a new log has none).

    What stands behind the last checkpoint is about to be signed, so it must follow from it; and from the one in the
    file beside the log, which whoever cuts the log may have forgotten, or been unable to reach.
    """
    with sink.reader() as log:
        size, last = log.size(), log.last_checkpoint()
        if file.is_file():
            _believed(file.read_bytes(), log, size, keys, f"the checkpoint in {file}")
        if last is None:
            if size:
                raise AuditError("it has records and no checkpoint")
            return Edge(), -1
        edge = _believed(last[1], log, size, keys, "its last checkpoint")
        sealed = edge.size
        for index, entry_body, hashes in log.entries(sealed):
            following, entry = edge.entry(entry_body if isinstance(entry_body, bytes) else b"")
            if (index, hashes) != (edge.size, entry.hashes):
                raise AuditError(f"record {edge.size} does not follow the one before")
            edge = following
        return edge, sealed


def _believed(note: bytes, log: LogReader, size: int, keys: Sequence[Ed25519PublicKey], what: str) -> Edge:
    """The edge that a checkpoint of this log signed; `size`: entries that are there."""
    try:
        checkpoint = Checkpoint.open(note, keys)
    except CheckpointError as error:
        raise AuditError(f"{what} is not to be believed: {error}") from None
    if checkpoint.origin != log.origin:
        raise AuditError(f"{what} is of another log")
    if checkpoint.size > size:
        raise AuditError(f"{what} is over {checkpoint.size} records, and it has {size}")
    edge = Edge.read(checkpoint.size, stored_node(log))
    if edge.root != checkpoint.root:
        raise AuditError(f"the first {checkpoint.size} records are not those that {what} was signed over")
    return edge
