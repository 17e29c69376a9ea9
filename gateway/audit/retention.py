"""Prunes records that are older than the site keeps them: their bytes go, and the tree that binds them stays whole.

A pruned entry keeps its hashes, so every proof and every checkpoint holds as before. What may go is a record of its
own, under a signed checkpoint before the first byte is removed; an entry whose record is gone without one was tampered
with (`verify`). Records go from the front and up to a checkpoint that is old enough: it was signed after the last of
them was written, so its time is one that nobody who can only write the log can move.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gateway.audit.checkpoint import Checkpoint, CheckpointError
from gateway.audit.log import AuditLog
from gateway.audit.record import Pruned
from gateway.audit.sinks import PRUNED, LogReader
from gateway.audit.tree import SIZE_MAX
from gateway.errors import AuditError, GatewayError

LOOK_S = 3600.0
"""How often there is a look at what has become too old."""
_BATCH_RECORDS = 1000
"""Of one transaction; bounds how long an append waits for it."""
_SEAL_LOOK_S = 0.2

_log = structlog.get_logger(__name__)


class Retention:
    """Keeps the log no longer than it should be kept, from a thread of its own."""

    def __init__(
        self,
        log: AuditLog,
        keys: Sequence[Ed25519PublicKey],
        *,
        days_max: float,
        needed_from: Callable[[], int] = lambda: SIZE_MAX,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Nothing is pruned before the first look.

        Args:
            log: is pruned, and told of it.
            keys: public checkpoint keys, the present and the retired ones.
            days_max: records whose checkpoint is older than this go.
            needed_from: index of the first record that somebody still waits for, such as a collector; it stays.
            clock: aware time.
        """
        self._audit = log
        self._keys = keys
        self._days_max = days_max
        self._needed_from = needed_from
        self._clock = clock
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()  # it appends to the log, which is closed after this

    def prune(self) -> int:
        """Remove what is too old now; returns how many records.

        (1) find the newest checkpoint that is old enough
        (2) record what may go, and wait until a checkpoint covers that record
        (3) remove it, batch by batch from the front

        A crash on the way leaves records that might have gone; the next look begins anew.

        Raises:
            AuditError: the log is damaged, or cannot be written.
        """
        with self._audit.reader() as reader:  # (1)
            first = _first_kept(reader)
            found = self._old_enough(reader, first)
        if found is None:
            return 0
        end, before = found
        place = self._audit.append(Pruned(first, end, before, self._days_max)).result()  # (2)
        while self._audit.sealed <= place:
            if self._stop.wait(_SEAL_LOOK_S):
                return 0
        for start in range(first, end, _BATCH_RECORDS):  # (3)
            if self._stop.is_set():
                return start - first
            self._audit.prune(start, min(end, start + _BATCH_RECORDS))
        return end - first

    def _old_enough(self, log: LogReader, first: int) -> tuple[int, str] | None:
        """How many records the newest checkpoint covers that is too old, and its time; None where there is nothing."""
        cutoff, most, found = self._clock() - timedelta(days=self._days_max), self._needed_from(), None
        for size, note in log.checkpoints(above=first):
            try:
                checkpoint = Checkpoint.open(note if isinstance(note, bytes) else b"", self._keys)
                at = datetime.fromisoformat(checkpoint.time)
            except (CheckpointError, ValueError):
                raise AuditError(f"the audit log's checkpoint over {size} records is not to be believed") from None
            if (checkpoint.origin, checkpoint.size) != (log.origin, size):
                raise AuditError(f"the audit log's checkpoint over {size} records is of another log")
            if at > cutoff or size > most:
                break
            found = size, checkpoint.time
        return found

    def _run(self) -> None:
        while True:
            try:
                if count := self.prune():
                    _log.info("audit_pruned", count=count)
            except GatewayError as error:
                _log.error("audit_not_pruned", error=type(error).__name__)
            if self._stop.wait(LOOK_S):
                return


def _first_kept(log: LogReader) -> int:
    """Index of the first record that was not pruned: those that were all lie before it."""
    low, high = 0, log.size()
    while low < high:
        middle = (low + high) // 2
        row = log.entry(middle)
        if row is None:
            raise AuditError(f"record {middle} of the audit log is missing")
        if row[1] == PRUNED:
            low = middle + 1
        else:
            high = middle
    return low
