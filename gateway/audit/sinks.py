"""Where an audit log lies: what a place for it must do, whichever it is, and which one a name means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from gateway.audit.tree import HASH_BYTES, SIZE_MAX, Entry, Node, place_of
from gateway.errors import AuditError

SCHEMA_VERSION = 3
"""Of the tables, the same in every place."""

EVERY = -(2**63)
"""Below every index, so that nothing hides in front of the first."""

PRUNED = b""
"""Body of an entry whose record was pruned (`retention`); no record is empty, and the hashes stay."""

Row: TypeAlias = tuple[int, object, object]
"""(index, body, hashes); bytes both, unless somebody tampered."""


class Turn(Protocol):
    """The log while nobody else writes it; what was done is durable at the end of the turn, or none of it."""

    def size(self) -> int:
        """One more than the last index that is there."""

    def leaves(self, first: int) -> Iterator[bytes]:
        """Hashes of the leaves from index `first`, in order."""

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries at the end."""

    def seal(self, size: int, note: bytes) -> None:
        """Keep a signed checkpoint over the first `size` entries."""


class LogReader(Protocol):
    """The log as it was at one moment, for whoever believes nothing and changes nothing.

    Each method raises `AuditError` where the log cannot be read.
    """

    @property
    def origin(self) -> str:
        """The log's own random name."""

    def count(self) -> int:
        """How many entries there are, whatever they are worth."""

    def size(self) -> int:
        """One more than the last index that is there."""

    def entries(self, first: int = EVERY, end: int = SIZE_MAX) -> Iterator[Row]:
        """Entries in order of their index, from `first` to before `end`."""

    def entry(self, index: int) -> Row | None:
        """The entry of one place."""

    def checkpoints(self, above: int = EVERY) -> Iterator[tuple[int, object]]:
        """(size, note) in order of size, of those over more than `above` entries."""

    def last_checkpoint(self) -> tuple[int, bytes] | None:
        """(size, note), the newest."""

    def close(self) -> None:
        """Let go of the log."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let go of the log."""


class AuditSink(Protocol):
    """A place for entries and checkpoints; used by one thread at a time, but for `reader` and `prune`."""

    @property
    def origin(self) -> str:
        """The log's own random name."""

    def turn(self) -> AbstractContextManager[Turn]:
        """Write alone; raises `AuditError` where it failed, and then nothing was written or nobody can tell."""

    def reader(self) -> LogReader:
        """The log as it is now; raises `AuditError`. Safe from any thread."""

    def prune(self, first: int, end: int) -> None:
        """Remove the bodies of the entries from `first` to before `end`, durably; their hashes stay.

        Safe from any thread; raises `AuditError`. Nothing here asks whether they may go: `retention` does.
        """

    def close(self) -> None:
        """Let go of the log."""


def stored_node(log: LogReader) -> Node:
    """Reads hashes of perfect subtrees where their entries carry them; they raise `AuditError` where damaged."""

    def node(level: int, index: int) -> bytes:
        place, offset = place_of(level, index)
        row = log.entry(place)
        hashes = row[2] if row is not None else None
        if not isinstance(hashes, bytes) or len(hashes) < offset + HASH_BYTES:
            raise AuditError(f"record {place} of the audit log is damaged or missing")
        return hashes[offset : offset + HASH_BYTES]

    return node
