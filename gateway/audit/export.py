"""Shows records of a log to people and other systems, as they stand there; verifies nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TextIO

from gateway.audit.sinks import EVERY, PRUNED, LogReader, Row
from gateway.audit.tree import HASH_BYTES
from gateway.errors import AuditError, ScanError


@dataclass(frozen=True, slots=True)
class Period:
    """From one time to before another, where there is one; both aware."""

    start: datetime | None = None
    end: datetime | None = None

    def holds(self, line: dict[str, Any]) -> bool:
        """Whether a record of `lines` was written in it; one that does not say when is in every period."""
        try:
            at = datetime.fromisoformat(line["record"]["at"])
        except (KeyError, TypeError, ValueError):
            return True
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        return (self.start is None or at >= self.start) and (self.end is None or at < self.end)


ALWAYS = Period()


def show(log: LogReader, index: int) -> dict[str, Any]:
    """One record with its place and leaf hash, as JSON would hold it; raises ScanError where there is none."""
    row = log.entry(index)
    if row is None:
        raise ScanError(f"the log has no record {index}")
    if row[1] == PRUNED:
        raise ScanError(f"record {index} was pruned: its hash is all that is left")
    return line_of(row)


def lines(log: LogReader, period: Period = ALWAYS, first: int = EVERY) -> Iterator[dict[str, Any]]:
    """Records in order, from index `first`, in the form of `show`; raises AuditError at one that is damaged.

    What was pruned is left out; the record of the pruning says so.
    """
    for row in log.entries(first):
        if row[1] == PRUNED:
            continue
        line = line_of(row)
        if period.holds(line):
            yield line


def export_jsonl(log: LogReader, out: TextIO, period: Period = ALWAYS) -> int:
    """Write records as one line of JSON each, in order; returns how many."""
    count = 0
    for line in lines(log, period):
        out.write(json.dumps(line, sort_keys=True) + "\n")
        count += 1
    return count


def line_of(row: Row) -> dict[str, Any]:
    """A row as JSON would hold it; raises AuditError where it is damaged."""
    index, body, hashes = row
    try:
        if not isinstance(body, bytes) or not isinstance(hashes, bytes):
            raise ValueError("not bytes")
        record = json.loads(body)
    except ValueError:
        raise AuditError(f"record {index} of the audit log is damaged") from None
    return {"index": index, "leaf": hashes[:HASH_BYTES].hex(), "record": record}
