"""The audit log in a PostgreSQL database, for several gateways that write one log.

A turn is a transaction that holds one advisory lock, so appends are in one order whoever makes them. The server must
be one that commits to disk. Triggers refuse UPDATE (but for pruning), DELETE and TRUNCATE; they stop accidents, not
somebody who owns the database: that is what the tree is for.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Self

import psycopg
from psycopg.rows import TupleRow

from gateway.audit.sinks import EVERY, SCHEMA_VERSION, Row
from gateway.audit.tree import HASH_BYTES, SIZE_MAX, Entry
from gateway.errors import AuditError, ConfigError

_LOCK = 0x5343_414E_5741_5244
"""Key of the advisory lock, "SCANWARD": one log in a database."""
_FETCH_ROWS = 500
_TURNS = {"idle_in_transaction_session_timeout": "10s"}
"""A gateway that froze in its turn must let the others write."""
_NOT_DURABLE = {"fsync": ("off",), "synchronous_commit": ("off", "local")}

_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS scanward_audit;
CREATE TABLE meta (origin text NOT NULL, version integer NOT NULL);
CREATE TABLE entries (idx bigint PRIMARY KEY, body bytea NOT NULL, hashes bytea NOT NULL);
CREATE TABLE checkpoints
    (id bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY, size bigint NOT NULL, note bytea NOT NULL);
CREATE INDEX checkpoints_size ON checkpoints (size, id);
CREATE FUNCTION append_only() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'append only'; END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON meta EXECUTE FUNCTION append_only();
CREATE TRIGGER append_only BEFORE DELETE OR TRUNCATE ON entries EXECUTE FUNCTION append_only();
CREATE TRIGGER prune_only BEFORE UPDATE ON entries FOR EACH ROW
    WHEN (NEW.idx != OLD.idx OR NEW.hashes != OLD.hashes OR NEW.body != '' OR NEW.body IS NULL)
    EXECUTE FUNCTION append_only();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON checkpoints EXECUTE FUNCTION append_only();
"""


class PostgresSink:
    """The log in a database that other gateways may write as well."""

    def __init__(self, dsn: str) -> None:
        """Connect, and create the tables where there are none; raises ConfigError. `dsn`: libpq connection string."""
        self._dsn = dsn
        try:
            self._connection = _connected(dsn, **_TURNS)
            self._origin = _created(self._connection)
        except psycopg.Error as error:
            raise ConfigError([f"audit log in PostgreSQL: cannot be opened ({_first_line(error)})"]) from None

    @property
    def origin(self) -> str:
        """The log's own random name."""
        return self._origin

    @contextlib.contextmanager
    def turn(self) -> Iterator[PostgresTurn]:
        """Write as one transaction, alone among all gateways; a lost connection is made anew."""
        try:
            if self._connection.closed:
                self._connection = _connected(self._dsn, **_TURNS)
            with self._connection.transaction():
                self._connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                if _origin_of(self._connection) != self._origin:
                    raise AuditError("the audit log's tables were replaced")
                yield PostgresTurn(self._connection)
        except psycopg.Error as error:
            # Whether a commit that was cut off took place is not known; the next turn sees.
            self._connection.close()
            raise AuditError(f"the audit log cannot be written: {type(error).__name__}") from None

    def reader(self) -> PostgresReader:
        """The log as it is now, on a connection of its own."""
        return PostgresReader(self._dsn)

    def prune(self, first: int, end: int) -> None:
        """Remove bodies, on a connection of its own; the server's vacuum gives their room back."""
        try:
            with contextlib.closing(_connected(self._dsn)) as connection:
                connection.execute(
                    "UPDATE entries SET body = '' WHERE idx >= %s AND idx < %s AND body != ''", (first, end)
                )
        except psycopg.Error as error:
            raise AuditError(f"the audit log cannot be pruned: {type(error).__name__}") from None

    def close(self) -> None:
        """Let go of the log."""
        self._connection.close()


class PostgresTurn:
    """One transaction under the lock."""

    def __init__(self, connection: psycopg.Connection[TupleRow]) -> None:
        self._connection = connection

    def size(self) -> int:
        """One more than the last index that is there."""
        row = self._connection.execute("SELECT coalesce(max(idx) + 1, 0) FROM entries").fetchone()
        return int(row[0]) if row is not None else 0

    def leaves(self, first: int) -> Iterator[bytes]:
        """Hashes of the leaves from index `first`, in order."""
        with self._connection.cursor("leaves") as cursor:
            cursor.itersize = _FETCH_ROWS
            cursor.execute(
                "SELECT idx, substring(hashes FROM 1 FOR %s) FROM entries WHERE idx >= %s ORDER BY idx",
                (HASH_BYTES, first),
            )
            for index, (place, leaf) in enumerate(cursor, first):
                if place != index:
                    raise AuditError(f"record {index} of the audit log is missing")
                yield leaf

    def append(self, entries: Sequence[Entry]) -> None:
        """Put entries at the end."""
        with (
            self._connection.cursor() as cursor,
            cursor.copy("COPY entries (idx, body, hashes) FROM STDIN (FORMAT binary)") as copy,
        ):
            copy.set_types(["int8", "bytea", "bytea"])
            for entry in entries:
                copy.write_row((entry.index, entry.body, entry.hashes))

    def seal(self, size: int, note: bytes) -> None:
        """Keep a signed checkpoint over the first `size` entries."""
        self._connection.execute("INSERT INTO checkpoints (size, note) VALUES (%s, %s)", (size, note))


class PostgresReader:
    """The log in a database, as it was when the reader was made."""

    def __init__(self, dsn: str) -> None:
        """Connect; raises AuditError where there is no audit log of this version."""
        try:
            self._connection = _connected(dsn)
            self._connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            versions = self._connection.execute("SELECT version, origin FROM meta LIMIT 2").fetchall()
        except psycopg.Error as error:
            raise AuditError(f"audit log in PostgreSQL: cannot be read ({_first_line(error)})") from None
        if len(versions) != 1 or versions[0][0] != SCHEMA_VERSION:
            self._connection.close()
            raise AuditError(f"audit log in PostgreSQL: not a log of schema version {SCHEMA_VERSION}")
        self._origin = str(versions[0][1])

    @property
    def origin(self) -> str:
        """The log's own random name."""
        return self._origin

    def count(self) -> int:
        """How many entries there are, whatever they are worth."""
        return int(self._row("SELECT count(*) FROM entries")[0])

    def size(self) -> int:
        """One more than the last index that is there."""
        return int(self._row("SELECT coalesce(max(idx) + 1, 0) FROM entries")[0])

    def entries(self, first: int = EVERY, end: int = SIZE_MAX) -> Iterator[Row]:
        """Entries in order of their index, from `first` to before `end`."""
        statement = "SELECT idx, body, hashes FROM entries WHERE idx >= %s AND idx < %s ORDER BY idx"
        yield from self._rows(statement, first, end)

    def entry(self, index: int) -> Row | None:
        """The entry of one place."""
        row: Row | None = self._row("SELECT idx, body, hashes FROM entries WHERE idx = %s", index)
        return row

    def checkpoints(self, above: int = EVERY) -> Iterator[tuple[int, object]]:
        """(size, note) in order of size, of those over more than `above` entries."""
        yield from self._rows("SELECT size, note FROM checkpoints WHERE size > %s ORDER BY size, id", above)

    def last_checkpoint(self) -> tuple[int, bytes] | None:
        """(size, note), the newest."""
        row: tuple[int, bytes] | None = self._row("SELECT size, note FROM checkpoints ORDER BY id DESC LIMIT 1")
        return row

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _row(self, statement: str, *values: object) -> Any:
        try:
            return self._connection.execute(statement.encode(), values).fetchone()
        except psycopg.Error as error:
            raise AuditError(f"the audit log cannot be read: {type(error).__name__}") from None

    def _rows(self, statement: str, *values: object) -> Iterator[Any]:
        """Rows fetched some at a time: the server holds the rest."""
        try:
            with self._connection.cursor(f"rows_{uuid.uuid4().hex}") as cursor:
                cursor.itersize = _FETCH_ROWS
                cursor.execute(statement.encode(), values)
                yield from cursor
        except psycopg.Error as error:
            raise AuditError(f"the audit log cannot be read: {type(error).__name__}") from None


def _connected(dsn: str, **more: str) -> psycopg.Connection[TupleRow]:
    """A connection on which nothing waits for ever, and on which no commit is answered before it is on disk."""
    settings = {"search_path": "scanward_audit", "lock_timeout": "10s", "statement_timeout": "30s", **more}
    connection = psycopg.connect(dsn, autocommit=True, connect_timeout=5, application_name="scanward-audit")
    try:
        for name, value in settings.items():
            connection.execute("SELECT set_config(%s, %s, false)", (name, value))
        for name, weak in _NOT_DURABLE.items():
            row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
            if row is not None and row[0] in weak:
                raise psycopg.OperationalError(f"its setting {name} is {row[0]}: records would not be durable")
    except BaseException:
        connection.close()
        raise
    return connection


def _created(connection: psycopg.Connection[TupleRow]) -> str:
    """Create the tables where there are none; returns the log's name."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        row = connection.execute("SELECT to_regclass('scanward_audit.meta')").fetchone()
        if row is None or row[0] is None:
            connection.execute(_SCHEMA)
            origin = f"scanward-audit/{uuid.uuid4()}"
            connection.execute("INSERT INTO meta VALUES (%s, %s)", (origin, SCHEMA_VERSION))
        version = connection.execute("SELECT version FROM meta").fetchone()
        if version is None or version[0] != SCHEMA_VERSION:
            raise ConfigError([f"audit log in PostgreSQL: not of schema version {SCHEMA_VERSION}"])
        return _origin_of(connection)


def _origin_of(connection: psycopg.Connection[TupleRow]) -> str:
    row = connection.execute("SELECT origin FROM meta").fetchone()
    return "" if row is None else str(row[0])


def _first_line(error: psycopg.Error) -> str:
    return str(error).partition("\n")[0]
