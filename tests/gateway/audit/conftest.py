"""What the log's tests share: both places where a log can lie, and what somebody does who can write there."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.checkpoint import Checkpoint
from gateway.audit.log import AuditLog
from gateway.audit.places import open_reader
from gateway.audit.postgres import PostgresSink
from gateway.audit.record import Started
from gateway.audit.sinks import AuditSink
from gateway.audit.sqlite import SqliteSink
from gateway.audit.verify import AuditReport, verify
from gateway.telemetry.metrics import Metrics

OPTIONS = ("-c", "listen_addresses=", "-c", "shared_buffers=16MB", "-c", "full_page_writes=off")
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


class Place(Protocol):
    """Where a log lies."""

    name: str
    """As `--log` takes it."""

    def sink(self) -> AuditSink: ...

    def tamper(self, *statements: str) -> None:
        """Run SQL as somebody who owns the place: what refuses changes is the first thing to go."""

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement likewise, with %s for values."""


class SqlitePlace:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    def sink(self) -> AuditSink:
        return SqliteSink(self.path)

    def tamper(self, *statements: str) -> None:
        for statement in statements:
            self.query(statement)

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path)) as database, database:
            for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
                database.execute(f"DROP TRIGGER {name}")
            return database.execute(statement.replace("%s", "?"), values).fetchall()


class PostgresPlace:
    """An empty database, with a connection of its own for tampering."""

    def __init__(self, dsn: str) -> None:
        self.name = dsn
        self._owner = psycopg.connect(dsn, autocommit=True, options="-c search_path=scanward_audit -c lock_timeout=20s")
        self._owner.execute("DROP SCHEMA IF EXISTS scanward_audit CASCADE")

    def sink(self) -> AuditSink:
        return PostgresSink(self.name)

    def tamper(self, *statements: str) -> None:
        for statement in statements:
            self.query(statement)

    def query(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        for table in () if statement.startswith("SELECT") else ("meta", "entries", "checkpoints"):
            for trigger in ("append_only", "prune_only"):
                self._owner.execute(f"DROP TRIGGER IF EXISTS {trigger} ON {table}".encode())
        cursor = self._owner.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        self._owner.close()


class PostgresServer:
    """A server of the system's package in a directory of its own, without network; as root it runs as `postgres`."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="scanward-pg-"))
        self._user: dict[str, Any] = {}
        if os.getuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(self.directory, owner.pw_uid, owner.pw_gid)
            self._user = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
        self._run("initdb", "--pgdata", "data", "--auth", "trust", "--username", "postgres", "--no-sync")
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [POSTGRES[-1] / "postgres", "-D", self.directory / "data", "-k", self.directory, *OPTIONS],
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._user,
        )
        for _ in range(600):
            try:
                psycopg.connect(self.dsn("postgres")).close()
                return
            except psycopg.OperationalError:
                time.sleep(0.05)
        raise AssertionError("PostgreSQL does not answer")

    def kill(self) -> None:
        """As a power cut ends it: nothing is written any more."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.process.kill()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self.process.wait()

    def database(self) -> str:
        name = f"log_{uuid.uuid4().hex}"
        with psycopg.connect(self.dsn("postgres"), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return self.dsn(name)

    def dsn(self, database: str) -> str:
        return f"postgresql:///{database}?host={self.directory}&user=postgres"

    def close(self) -> None:
        self.kill()  # nothing of it is needed any more
        shutil.rmtree(self.directory)

    def _run(self, tool: str, *arguments: str) -> None:
        subprocess.run(
            [POSTGRES[-1] / tool, *arguments], cwd=self.directory, check=True, capture_output=True, **self._user
        )


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    if not POSTGRES:
        pytest.skip("needs postgresql: the server's programs")
    server = PostgresServer()
    yield server
    server.close()


@pytest.fixture
def audit_path(tmp_path: Path) -> Path:
    return tmp_path / "log" / "audit.db"


@pytest.fixture
def sqlite_place(audit_path: Path) -> SqlitePlace:
    return SqlitePlace(audit_path)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, audit_path: Path) -> Iterator[Place]:
    """Each of both: the same promises hold."""
    if request.param == "sqlite":
        yield SqlitePlace(audit_path)
        return
    yield request.getfixturevalue("postgres_place")


@pytest.fixture
def postgres_place(postgres_server: PostgresServer) -> Iterator[PostgresPlace]:
    with contextlib.closing(PostgresPlace(postgres_server.dsn("postgres"))) as place:
        yield place


@pytest.fixture
def checkpoint_file(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.note"


@pytest.fixture
def open_log(
    request: pytest.FixtureRequest, checkpoint_key: Ed25519PrivateKey, checkpoint_file: Path
) -> Callable[..., AuditLog]:
    """Opens the log at `place` (else at `audit_path`), new or again."""
    kind = "place" if "place" in request.fixturenames else "sqlite_place"
    place: Place = request.getfixturevalue(kind)

    def open_(sink: AuditSink | None = None, *, key: Ed25519PrivateKey = checkpoint_key, **options: Any) -> AuditLog:
        options = {"metrics": Metrics(), "checkpoint_file": checkpoint_file, **options}
        return AuditLog(sink or place.sink(), key, **options)

    return open_


@pytest.fixture
def written(place: Place, open_log: Callable[..., AuditLog]) -> Place:
    """A closed log of 40 records, with checkpoints over 0, 10, 20, 30 and 40."""
    _write(open_log)
    return place


@pytest.fixture
def written_file(sqlite_place: SqlitePlace, open_log: Callable[..., AuditLog]) -> SqlitePlace:
    """The same, in a file alone."""
    _write(open_log)
    return sqlite_place


def _write(open_log: Callable[..., AuditLog]) -> None:
    log = open_log(checkpoint_records=10)
    for ten in range(0, 40, 10):
        for future in [log.append(Started(str(ten + number), "test")) for number in range(10)]:
            future.result()
    log.close()


@pytest.fixture
def examine(checkpoint_key: Ed25519PrivateKey) -> Callable[..., AuditReport]:
    """Verifies the log of a place with the public checkpoint key, and what was kept outside."""

    def examine_(place: Place, *outside: Checkpoint, key: Ed25519PrivateKey = checkpoint_key) -> AuditReport:
        with open_reader(place.name) as log:
            return verify(log, [key.public_key()], outside)

    return examine_
