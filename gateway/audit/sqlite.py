"""The audit log as one SQLite file that takes new entries, lets bodies be pruned, and refuses every other change.

WAL with synchronous=FULL: when a turn has ended, its entries are on disk. Triggers refuse UPDATE (but for pruning),
DELETE and an entry out of its place; they stop accidents, not somebody who can write the file: that is what the tree
is for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from gateway.audit.sinks import EVERY, SCHEMA_VERSION, Row
from gateway.audit.tree import HASH_BYTES, SIZE_MAX, Entry
from gateway.durable import sync_directory
from gateway.errors import AuditError, ConfigError

_SCHEMA = """
CREATE TABLE meta (origin TEXT NOT NULL);
CREATE TABLE entries (idx INTEGER PRIMARY KEY, body BLOB NOT NULL, hashes BLOB NOT NULL);
CREATE TABLE checkpoints (id INTEGER PRIMARY KEY, size INTEGER NOT NULL, note BLOB NOT NULL);
CREATE INDEX checkpoints_size ON checkpoints (size, id);
CREATE TRIGGER entries_in_place BEFORE INSERT ON entries
    WHEN NEW.idx != (SELECT coalesce(max(idx) + 1, 0) FROM entries) BEGIN SELECT RAISE(ABORT, 'out of place'); END;
CREATE TRIGGER checkpoints_in_place BEFORE INSERT ON checkpoints
    WHEN NEW.id IN (SELECT id FROM checkpoints) BEGIN SELECT RAISE(ABORT, 'out of place'); END;
CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries
    WHEN NEW.idx IS NOT OLD.idx OR NEW.hashes IS NOT OLD.hashes OR NEW.body IS NOT x''
    BEGIN SELECT RAISE(ABORT, 'append only'); END;
"""
_GUARDED = (
    ("meta", "update"),
    ("checkpoints", "update"),
    ("meta", "delete"),
    ("entries", "delete"),
    ("checkpoints", "delete"),
)
_APPEND_ONLY = "CREATE TRIGGER {table}_no_{word} BEFORE {word} ON {table} BEGIN SELECT RAISE(ABORT, 'append only'); END"


class SqliteSink:
    """The log as one SQLite file, held by one process at a time."""

    def __init__(self, path: Path) -> None:
        """Open or create; raises ConfigError where it cannot be used or another process has it."""
        self._path = path
        self._lock = _claim(path)
        try:
            self._database = _create_or_open(path)
            self._origin = str(self._database.execute("SELECT origin FROM meta").fetchone()[0])
            self._inode = path.stat().st_ino
        except (OSError, sqlite3.Error) as error:
            os.close(self._lock)
            raise ConfigError([f"audit log {path}: cannot be opened ({type(error).__name__}: {error})"]) from None
        except ConfigError:
            os.close(self._lock)
            raise

    @property
    def origin(self) -> str:
        """The log's own random name."""
        return self._origin

    @contextlib.contextmanager
    def turn(self) -> Iterator[SqliteTurn]:
        """Write as one transaction."""
        try:
            # SQLite would go on writing into a file that has lost its name, and nobody would ever see it.
            if self._path.stat().st_ino != self._inode:
                raise AuditError("the audit log's file was replaced")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield SqliteTurn(self._database)
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except (OSError, sqlite3.Error) as error:
            raise AuditError(f"the audit log cannot be written: {type(error).__name__}") from None

    def reader(self) -> SqliteReader:
        """The file as it is now."""
        return SqliteReader(self._path)

    def prune(self, first: int, end: int) -> None:
        """Remove bodies, and overwrite them where they lay."""
        try:
            with contextlib.closing(_connected(self._path)) as database:
                database.execute("PRAGMA secure_delete = ON")
                database.execute(
                    "UPDATE entries SET body = x'' WHERE idx >= ? AND idx < ? AND body != x''", (first, end)
                )
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # as far as no reader needs what stands there
        except sqlite3.Error as error:
            raise AuditError(f"the audit log cannot be pruned: {type(error).__name__}") from None

    def close(self) -> None:
        """Let go of the log."""
        self._database.close()
        os.close(self._lock)


class SqliteTurn:
    """One transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def size(self) -> int:
        """One more than the last index that is there."""
        return int(self._database.execute("SELECT coalesce(max(idx) + 1, 0) FROM entries").fetchone()[0])

    def leaves(self, first: int) -> Iterator[bytes]:
        """Hashes of the leaves from index `first`, in order."""
        for index, (place, hashes) in enumerate(
            self._database.execute("SELECT idx, hashes FROM entries WHERE idx >= ? ORDER BY idx", (first,)), first
        ):
            if place != index or not isinstance(hashes, bytes):
                raise AuditError(f"record {index} of the audit log is damaged or missing")
            yield hashes[:HASH_BYTES]

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries at the end."""
        self._database.executemany(
            "INSERT INTO entries (idx, body, hashes) VALUES (?, ?, ?)",
            [(entry.index, entry.body, entry.hashes) for entry in entries],
        )

    def seal(self, size: int, note: bytes) -> None:
        """Keep a signed checkpoint over the first `size` entries."""
        self._database.execute("INSERT INTO checkpoints (size, note) VALUES (?, ?)", (size, note))


class SqliteReader:
    """A log's file, read as it is."""

    def __init__(self, path: Path) -> None:
        """Open read-only; raises AuditError where it is no audit log of this version."""
        if not path.is_file():
            raise AuditError(f"audit log {path}: there is no such file")
        try:
            self._database = _read_only(path)
            version = self._database.execute("PRAGMA user_version").fetchone()[0]
            origins = self._database.execute("SELECT origin FROM meta LIMIT 2").fetchall()
            self._database.execute("BEGIN")  # one snapshot, however long the reading takes
        except sqlite3.Error as error:
            raise AuditError(f"audit log {path}: cannot be read ({type(error).__name__}: {error})") from None
        if version != SCHEMA_VERSION or len(origins) != 1:
            raise AuditError(f"audit log {path}: not a log of schema version {SCHEMA_VERSION}")
        self._origin = str(origins[0][0])

    @property
    def origin(self) -> str:
        """The log's own random name."""
        return self._origin

    def count(self) -> int:
        """How many entries there are, whatever they are worth."""
        return int(next(self._rows("SELECT count(*) FROM entries"))[0])

    def size(self) -> int:
        """One more than the last index that is there."""
        return int(next(self._rows("SELECT coalesce(max(idx) + 1, 0) FROM entries"))[0])

    def entries(self, first: int = EVERY, end: int = SIZE_MAX) -> Iterator[Row]:
        """Entries in order of their index, from `first` to before `end`."""
        statement = "SELECT idx, body, hashes FROM entries WHERE idx >= ? AND idx < ? ORDER BY idx"
        yield from self._rows(statement, first, end)

    def entry(self, index: int) -> Row | None:
        """The entry of one place."""
        return next(self._rows("SELECT idx, body, hashes FROM entries WHERE idx = ?", index), None)

    def checkpoints(self, above: int = EVERY) -> Iterator[tuple[int, object]]:
        """(size, note) in order of size, of those over more than `above` entries."""
        yield from self._rows("SELECT size, note FROM checkpoints WHERE size > ? ORDER BY size, id", above)

    def last_checkpoint(self) -> tuple[int, bytes] | None:
        """(size, note), the newest."""
        row = next(self._rows("SELECT size, note FROM checkpoints ORDER BY id DESC LIMIT 1"), None)
        if row is not None and not isinstance(row[1], bytes):
            raise AuditError("the audit log's last checkpoint is damaged")
        return row

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _rows(self, statement: str, *values: object) -> Iterator[Any]:
        try:
            yield from self._database.execute(statement, values)
        except sqlite3.Error as error:
            raise AuditError(f"the audit log cannot be read: {type(error).__name__}") from None


def _claim(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError([f"audit log {path}: {error.strerror}"]) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise ConfigError([f"audit log {path}: another process is writing it"]) from None
    return lock


def _create_or_open(path: Path) -> sqlite3.Connection:
    path.touch(mode=0o600)
    database = _connected(path)
    version = database.execute("PRAGMA user_version").fetchone()[0]
    if version not in (0, SCHEMA_VERSION):
        raise ConfigError([f"audit log {path}: schema version {version}, this is version {SCHEMA_VERSION}"])
    if version == 0:
        statements = [statement for statement in _SCHEMA.split(";\n") if statement.strip()]
        statements += [_APPEND_ONLY.format(table=table, word=word) for table, word in _GUARDED]
        database.execute("BEGIN IMMEDIATE")
        for statement in statements:
            database.execute(statement)
        database.execute("INSERT INTO meta (origin) VALUES (?)", (f"scanward-audit/{uuid.uuid4()}",))
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")
        sync_directory(path.parent)
    return database


def _connected(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=5.0)
    database.execute("PRAGMA journal_mode = WAL")
    database.execute("PRAGMA synchronous = FULL")
    return database


def _read_only(path: Path) -> sqlite3.Connection:
    location = path.resolve().as_uri()
    try:
        database = sqlite3.connect(f"{location}?mode=ro", uri=True, isolation_level=None)
        database.execute("SELECT count(*) FROM meta").fetchone()
    except sqlite3.OperationalError:
        if Path(f"{path}-wal").exists():
            raise
        # A finished log on a medium that cannot be written: there is nothing to recover and nobody to share with.
        database = sqlite3.connect(f"{location}?immutable=1", uri=True, isolation_level=None)
    return database
