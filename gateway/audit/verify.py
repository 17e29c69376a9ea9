"""Reads a log as a stranger would: believes only the keys, and the checkpoints, that came from outside."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gateway.audit.checkpoint import Checkpoint, CheckpointError
from gateway.audit.record import Pruned
from gateway.audit.sinks import PRUNED, LogReader
from gateway.audit.tree import HASH_BYTES, Edge
from gateway.errors import AuditError

_PROGRESS_RECORDS = 1000
_PRUNING = f'"kind":"{Pruned.kind}"'.encode()
"""In the canonical bytes of a record of a pruning, and of hardly another."""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an examination of the log found."""

    records: int
    """Entries that are in the log."""
    first_bad: int | None
    """Index of the first entry that cannot be believed; where the end was cut off, of the first that is missing."""
    root: str
    """Root of the tree of all entries before the first bad one, lower-case hexadecimal."""
    ok: bool
    """Nothing was changed, as far as the tree and the checkpoints reach."""
    sealed: int
    """Entries that a believed checkpoint covers; the rest is bound by hashes that nobody signed yet."""
    detail: str
    """A sentence on what is wrong; empty where nothing is."""
    pruned: int = 0
    """Entries, the first ones, whose records were pruned: their hashes alone are left."""
    pruned_by: int | None = None
    """Index of the record, under a believed checkpoint, that says that they may be gone."""


class _Broken(Exception):  # noqa: N818 - a finding, not a failure
    def __init__(self, index: int, detail: str) -> None:
        super().__init__(detail)
        self.index = index
        self.detail = detail


def verify(
    log: LogReader,
    keys: Sequence[Ed25519PublicKey],
    outside: Sequence[Checkpoint] = (),
    progress: Callable[[int], object] = lambda records: None,
) -> AuditReport:
    """Walk the whole log once, in constant memory.

    Args:
        log: a running gateway's, or a copy.
        keys: public checkpoint keys, the present and the retired ones, from outside the log.
        outside: checkpoints that were carried off the machine earlier (`read_checkpoints`). Without any, an end that
            was cut off together with its checkpoints, or rewritten after the last one, cannot be seen.
        progress: told from time to time how many records were examined.

    """
    walk = _Walk(log, keys, outside)
    first_bad, detail = None, ""
    try:
        walk.run(progress)
        if walk.edge.size and not walk.sealed:
            first_bad, detail = 0, "no signed checkpoint covers any record"
        walk.allow()
    except _Broken as bad:
        first_bad, detail = bad.index, bad.detail
    except AuditError as error:
        first_bad, detail = walk.edge.size, f"the log is damaged after the first {walk.edge.size} records ({error})"
    try:
        records = log.count()
    except AuditError:  # so damaged that nobody can count them
        records = walk.edge.size
    return AuditReport(
        records, first_bad, walk.edge.root.hex(), first_bad is None, walk.sealed, detail, walk.pruned, walk.pruned_by
    )


def read_checkpoints(data: bytes, keys: Sequence[Ed25519PublicKey]) -> list[Checkpoint]:
    """What was kept outside: one signed note, or the lines of an anchor file, each with a note in it.

    Raises:
        CheckpointError: one of them is not signed by one of the keys, or there is none at all.
    """
    if not data.lstrip().startswith(b"{"):
        return [Checkpoint.open(data, keys)]
    found = []
    for line in data.splitlines():
        try:
            note = json.loads(line)["checkpoint"].encode()
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # cut off by a full disk; whoever can spoil a line can as well delete it
        found.append(Checkpoint.open(note, keys))
    if not found:
        raise CheckpointError("the anchor file holds no checkpoint")
    return found


class _Walk:
    def __init__(self, log: LogReader, keys: Sequence[Ed25519PublicKey], outside: Sequence[Checkpoint]) -> None:
        self._log = log
        self._keys = keys
        self._outside = sorted(outside, key=lambda checkpoint: checkpoint.size)
        self._inside = log.checkpoints()
        self._next: tuple[int, object] | None = None
        self._said: tuple[int, int] | None = None
        """Index and `end` of the newest record of a pruning."""
        self._allowed = 0
        self.edge = Edge()
        self.sealed = 0
        self.pruned = 0
        self.pruned_by: int | None = None

    def run(self, progress: Callable[[int], object]) -> None:
        if any(checkpoint.origin != self._log.origin for checkpoint in self._outside):
            raise _Broken(0, "the checkpoint belongs to another log")
        self._next = next(self._inside, None)
        if self._next is None:
            raise _Broken(0, "the log has no checkpoint, and every log is made with one")
        self._compare()
        for index, body, hashes in self._log.entries():
            self._take(index, body, hashes)
            self._compare()
            if self.edge.size % _PROGRESS_RECORDS == 0:
                progress(self.edge.size)
        ends = [self._next[0]] if self._next is not None else []
        ends += [checkpoint.size for checkpoint in self._outside]
        if ends:
            raise _Broken(self.edge.size, f"a checkpoint covers {max(ends)} records: the end was cut off")

    def _take(self, index: int, body: object, hashes: object) -> None:
        """One entry more, if it is the next, and carries what it and those before it hash to."""
        place = self.edge.size
        if index != place:
            raise _Broken(place, f"record {place} is missing")
        if not isinstance(body, bytes) or not isinstance(hashes, bytes):
            raise _Broken(place, f"record {place} was changed, moved or put in")
        if gone := body == PRUNED and self.pruned == place and len(hashes) >= HASH_BYTES:
            edge, expected = self.edge.grown(hashes[:HASH_BYTES])  # believed if what is above it fits
        else:
            edge, entry = self.edge.entry(body)
            expected = entry.hashes
        if len(hashes) != len(expected):
            raise _Broken(place, f"record {place} was changed, moved or put in")
        if hashes != expected:
            level = next(
                start // HASH_BYTES
                for start in range(0, len(hashes), HASH_BYTES)
                if hashes[start : start + HASH_BYTES] != expected[start : start + HASH_BYTES]
            )
            first = place + 1 - (1 << level)
            among = f"record {place}" if level == 0 else f"one of the records {first} to {place}"
            raise _Broken(first, f"{among} was changed, moved or put in")
        self.edge = edge
        if gone:
            self.pruned += 1
        elif _PRUNING in body:
            self._note(place, body)

    def _note(self, place: int, body: bytes) -> None:
        """Remember what a record of a pruning allows, until a checkpoint covers it."""
        record = json.loads(body)
        if record.get("kind") == Pruned.kind and isinstance(record.get("end"), int):
            self._said = place, record["end"]

    def allow(self) -> None:
        """Hold what is gone against what signed records say may be gone."""
        if self.pruned > self._allowed:
            lost = f"records {self._allowed} to {self.pruned - 1}"
            raise _Broken(
                self._allowed, f"{lost} are gone, and no record under a checkpoint says that they were pruned"
            )

    def _compare(self) -> None:
        """Hold every checkpoint over exactly the entries so far against the tree."""
        size = self.edge.size
        while self._next is not None and self._next[0] <= size:
            try:
                if not isinstance(self._next[1], bytes):
                    raise CheckpointError("it is not made of bytes")
                inside = Checkpoint.open(self._next[1], self._keys)
            except CheckpointError as error:
                raise _Broken(self.sealed, f"the log's checkpoint over {self._next[0]} records: {error}") from None
            if inside.origin != self._log.origin:
                raise _Broken(self.sealed, f"the log's checkpoint over {self._next[0]} records is of another log")
            self._hold(inside, "signed")
            self._next = next(self._inside, None)
        while self._outside and self._outside[0].size <= size:
            self._hold(self._outside.pop(0), "signed by the checkpoint from outside")

    def _hold(self, checkpoint: Checkpoint, what: str) -> None:
        size = self.edge.size
        if (checkpoint.size, checkpoint.root) != (size, self.edge.root):
            raise _Broken(self.sealed, f"records {self.sealed} to {size - 1} are not those that were {what}")
        self.sealed = size
        if self._said is not None:
            self.pruned_by, self._allowed = self._said
            self._said = None
