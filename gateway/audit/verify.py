"""Reads a log as a stranger would: believes only the keys, and the checkpoint, that came from outside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gateway.audit.chain import Checkpoint, Head, link, start
from gateway.audit.sinks import DATABASE_ERRORS, SqliteReader
from gateway.errors import ConfigError, ScanError
from signing.errors import EnvelopeError


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an examination of the log found."""

    records: int
    """Entries that are in the log."""
    first_bad: int | None
    """Index of the first entry that cannot be believed; where the end was cut off, of the first that is missing."""
    root: str
    """Hash of the last entry that follows from all before it, lower-case hexadecimal."""
    ok: bool
    """Nothing was changed, as far as the chain and the checkpoints reach."""
    sealed: int
    """Entries that a believed checkpoint covers; the rest is bound by the chain alone."""
    detail: str
    """A sentence on what is wrong; empty where nothing is."""


class _ChainError(Exception):
    def __init__(self, index: int, detail: str) -> None:
        super().__init__(detail)
        self.index = index
        self.detail = detail


def verify(path: Path, keys: Sequence[Ed25519PublicKey], checkpoint: bytes | None = None) -> AuditReport:
    """Walk the whole log once, in constant memory.

    Args:
        path: the SQLite file, of a running gateway or of a copy.
        keys: public checkpoint keys, the present and the retired ones, from outside the log.
        checkpoint: an envelope that was carried off the machine earlier. Without it, an end that was cut off
            together with its checkpoints, or rewritten after the last one, cannot be seen.

    Raises:
        ConfigError: the file is no log, or `checkpoint` is not signed by one of the keys.
    """
    outside = None
    if checkpoint is not None:
        try:
            outside = Checkpoint.open(checkpoint, keys)
        except EnvelopeError as error:
            raise ConfigError([f"checkpoint: {error}"]) from None
    with SqliteReader(path) as log:
        walk = _Walk(log, keys, outside)
        try:
            records = log.count()
            walk.run()
        except _ChainError as bad:
            return AuditReport(records, bad.index, walk.head.hash.hex(), False, walk.sealed, bad.detail)
        except DATABASE_ERRORS as error:
            size = walk.head.size
            detail = f"the file is damaged after the first {size} records ({type(error).__name__})"
            return AuditReport(size, size, walk.head.hash.hex(), False, walk.sealed, detail)
        if records and not walk.sealed:
            return AuditReport(records, 0, walk.head.hash.hex(), False, 0, "no signed checkpoint covers any record")
        return AuditReport(records, None, walk.head.hash.hex(), True, walk.sealed, "")


class _Walk:
    def __init__(self, log: SqliteReader, keys: Sequence[Ed25519PublicKey], outside: Checkpoint | None) -> None:
        self._log = log
        self._keys = keys
        self._outside = outside
        self._inside = log.checkpoints()
        self._next = next(self._inside, None)
        self.head = start(log.origin)
        self.sealed = 0

    def run(self) -> None:
        if self._outside is not None and self._outside.origin != self._log.origin:
            raise _ChainError(0, "the checkpoint belongs to another log")
        if self._next is None:
            raise _ChainError(0, "the log has no checkpoint, and every log is made with one")
        self._compare()
        for index, body, stored in self._log.entries():
            if index != self.head.size:
                raise _ChainError(self.head.size, f"record {self.head.size} is missing")
            if not isinstance(body, bytes) or stored != link(self.head.hash, index, body):
                raise _ChainError(index, f"record {index} was changed, moved or put in")
            self.head = Head(index + 1, stored)
            self._compare()
        if self._next is not None:
            raise _ChainError(
                self.head.size, f"a checkpoint of the log covers {self._next[0]} records: the end was cut off"
            )
        if self._outside is not None and self._outside.size > self.head.size:
            raise _ChainError(
                self.head.size, f"the checkpoint covers {self._outside.size} records: the end was cut off"
            )

    def _compare(self) -> None:
        """Hold every checkpoint over exactly the entries so far against the chain."""
        size, root = self.head.size, self.head.hash.hex()
        while self._next is not None and self._next[0] <= size:
            try:
                if not isinstance(self._next[1], bytes):
                    raise EnvelopeError("it is not made of bytes")
                inside = Checkpoint.open(self._next[1], self._keys)
            except EnvelopeError as error:
                raise _ChainError(self.sealed, f"the log's checkpoint over {self._next[0]} records: {error}") from None
            if (inside.origin, inside.size, inside.root) != (self._log.origin, size, root):
                raise _ChainError(self.sealed, f"records {self.sealed} to {size - 1} are not those that were signed")
            self.sealed = size
            self._next = next(self._inside, None)
        if self._outside is not None and self._outside.size == size:
            if self._outside.root != root:
                raise _ChainError(self.sealed, f"records {self.sealed} to {size - 1} are not those of the checkpoint")
            self.sealed = size


def show(path: Path, index: int) -> dict[str, Any]:
    """One record with its place and hash, as JSON would hold it; raises ScanError where there is none."""
    with SqliteReader(path) as log:
        row = log.entry(index)
    if row is None:
        raise ScanError(f"the log has no record {index}")
    return _line(*row)


def export_jsonl(path: Path, out: TextIO) -> int:
    """Write every record as one line of JSON, in order; returns how many. Verifies nothing: `verify` does."""
    count = 0
    with SqliteReader(path) as log:
        for line in _lines(log):
            out.write(json.dumps(line, sort_keys=True) + "\n")
            count += 1
    return count


def _lines(log: SqliteReader) -> Iterator[dict[str, Any]]:
    for row in log.entries():
        yield _line(*row)


def _line(index: int, body: object, stored: object) -> dict[str, Any]:
    if not isinstance(body, bytes) or not isinstance(stored, bytes):
        raise ConfigError([f"record {index} of the audit log is damaged"])
    try:
        record = json.loads(body)
    except ValueError:
        raise ConfigError([f"record {index} of the audit log is damaged"]) from None
    return {"index": index, "hash": stored.hex(), "record": record}
