"""Answers those who check a log from outside: its signed end, proofs in its tree, and its records in pages."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.audit.export import line_of
from gateway.audit.sinks import PRUNED, LogReader, stored_node
from gateway.audit.tree import consistency_path, inclusion_path
from gateway.errors import AuditError, ScanError

PAGE_RECORDS = 100
"""Where the asker does not say."""
PAGE_RECORDS_MAX = 1000
PAGE_BYTES_MAX = 2 << 20
"""Of one page's records, unless its first alone is larger; gRPC clients take 4 MiB."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Hashes that lead to a root, and the newest checkpoint."""

    size: int
    """Of the (later) tree that it is about."""
    path: tuple[bytes, ...]
    note: bytes
    record: bytes = b""
    """The proven record, where it is about one; empty where it was pruned, and the path proves whoever's copy."""


def newest_checkpoint(log: LogReader) -> tuple[int, bytes]:
    """The last signed note and its size, as the log keeps them; raises `AuditError` where there is none."""
    found = log.last_checkpoint()
    if found is None:
        raise AuditError("the audit log has no checkpoint")
    return found


def prove_inclusion(log: LogReader, index: int, size: int = 0) -> Proof:
    """What proves record `index` in the tree of `size` records, else in that of the newest checkpoint.

    Raises:
        ScanError: there is no such record, or no such tree.
        AuditError: no checkpoint covers the record yet, or the log is damaged.
    """
    sealed, note = newest_checkpoint(log)
    there = log.size()
    if index >= there:
        raise ScanError(f"the log has no record {index}")
    if not size and index >= sealed:
        raise AuditError(f"no checkpoint covers record {index} yet")
    size = size or sealed
    if not index < size <= there:
        raise ScanError(f"there is no tree of {size} records that holds record {index}")
    row = log.entry(index)
    if row is None or not isinstance(row[1], bytes):
        raise AuditError(f"record {index} of the audit log is damaged or missing")
    return Proof(size, tuple(inclusion_path(index, size, stored_node(log))), note, row[1])


def prove_consistency(log: LogReader, old: int, new: int = 0) -> Proof:
    """What proves that the first `old` records are the beginning of `new`, else of those of the newest checkpoint.

    Raises:
        ScanError: the log was never of these sizes, one after the other.
        AuditError: the log is damaged.
    """
    sealed, note = newest_checkpoint(log)
    new = new or sealed
    if not 0 < old <= new <= log.size():
        raise ScanError(f"the log did not grow from {old} to {new} records")
    return Proof(new, tuple(consistency_path(old, new, stored_node(log))), note)


def page(log: LogReader, first: int, records_max: int = 0) -> list[tuple[int, bytes]]:
    """Records from `first`, (index, body) each; the body of one that was pruned is empty.

    Raises:
        ScanError: more were asked for than a page holds.
        AuditError: one of them is damaged.
    """
    wanted = records_max or PAGE_RECORDS
    if wanted > PAGE_RECORDS_MAX:
        raise ScanError(f"a page has at most {PAGE_RECORDS_MAX} records")
    found: list[tuple[int, bytes]] = []
    room = PAGE_BYTES_MAX
    for row in log.entries(first, first + wanted):
        if row[1] != PRUNED:
            line_of(row)  # raises where it is damaged
        assert isinstance(row[1], bytes)
        room -= len(row[1])
        if found and room < 0:
            break
        found.append((row[0], row[1]))
    return found
