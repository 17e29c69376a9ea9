"""Remembers what was accepted under a signature, so that an instance cannot come back as something else.

A SOP Instance UID is never used again (PS3.5 9). A second signed content under the same UID, or the same UID for
another patient, is a replay or a stolen key, whoever signed. Only accepted signatures leave a row, so a forgery
without one cannot make the true scan suspect.

SQLite in WAL mode with synchronous=FULL: a row is on disk before anybody learns of the acceptance. Callers that arrive
together share one transaction, and so one wait for the disk.
"""

from __future__ import annotations

import hmac
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gateway.errors import ConfigError, GatewayError, Overloaded
from gateway.telemetry.metrics import Metrics

_SCHEMA_VERSION = 1
_PRUNE_EVERY = 256
_SCHEMA = """
CREATE TABLE IF NOT EXISTS accepted (
    instance BLOB NOT NULL, signer BLOB NOT NULL, content BLOB NOT NULL, patient BLOB NOT NULL, at REAL NOT NULL,
    PRIMARY KEY (instance, signer)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS accepted_at ON accepted (at);
CREATE TABLE IF NOT EXISTS key_check (value BLOB NOT NULL);
"""


class Replayed(GatewayError):  # noqa: N818 - the word of the verdict
    """The instance was accepted before, and this is not what was accepted."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What one accepted signature says: this instance, of this patient, is this content."""

    scope: str
    """The profile that was required: signatures that had to cover different attributes are not compared."""
    instance: str
    """SOP Instance UID, as signed."""
    signer: str
    """SHA-256 fingerprint of the signer's certificate, in hexadecimal digits."""
    content: str
    """`signing.content_digest`."""
    patient: tuple[bytes, bytes]
    """Patient ID and Issuer of Patient ID, as signed."""


@dataclass(frozen=True, slots=True)
class _Row:
    instance: bytes
    signer: bytes
    content: bytes
    patient: bytes


@dataclass(slots=True, eq=False)
class _Request:
    row: _Row
    done: bool = False
    conflict: str | None = None
    failure: str | None = "interrupted"


class ReplayLedger:
    """Accepted claims by instance and signer, on disk; thread-safe.

    Nothing in it names a patient or an instance: UIDs and patient numbers can be guessed, so a bare hash of one could
    be undone by trying them all. They are stored as HMACs under a key that only the gateway has.
    """

    def __init__(
        self,
        path: Path,
        key: bytes,
        *,
        age_s_max: float | None,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`age_s_max`: what is older is forgotten; None keeps everything. Raises `ConfigError`."""
        self._key = key
        self._age_s_max = age_s_max
        self._metrics = metrics
        self._clock = clock
        self._waiting: list[_Request] = []
        self._waiting_lock = threading.Lock()
        self._database_lock = threading.Lock()
        self._database = _open(path, self._mac(b"key", b"check"))
        self._inserted = 0
        self._prune()
        self._rows: int = self._database.execute("SELECT count(*) FROM accepted").fetchone()[0]
        metrics.replay_rows(self._rows)

    def accept(self, claim: Claim) -> None:
        """Remember the claim, or find that it is the one remembered; on disk when this returns.

        Of several claims about one instance exactly one is first, however many callers there are.

        Raises:
            Replayed: the instance was accepted with other content, or for another patient.
            Overloaded: the ledger cannot be read or written, so nothing may be accepted.
        """
        request = _Request(self._row(claim))
        with self._waiting_lock:
            self._waiting.append(request)
        with self._database_lock:
            if not request.done:  # else an earlier caller's transaction took this one along
                self._settle()
        if request.failure is not None:
            raise Overloaded(f"the replay ledger cannot be used: {request.failure}")
        if request.conflict is not None:
            raise Replayed(request.conflict)

    def close(self) -> None:
        """Close the database; the ledger cannot be used after."""
        with self._database_lock:
            self._database.close()

    def _settle(self) -> None:
        """One transaction for all that wait; who is not settled by it has failed."""
        with self._waiting_lock:
            requests, self._waiting = self._waiting, []
        before = self._rows
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                for request in requests:
                    request.conflict = self._insert_or_compare(request.row)
                self._database.execute("COMMIT")
            except BaseException:
                self._rows = before
                self._database.rollback()
                raise
            for request in requests:
                request.failure = None
        except sqlite3.Error as error:
            for request in requests:
                request.failure = type(error).__name__
        finally:
            for request in requests:
                request.done = True
        self._metrics.replay_rows(self._rows)

    def _insert_or_compare(self, row: _Row) -> str | None:
        """What stands against the row, or None once it is in the table."""
        known = self._database.execute(
            "SELECT signer, content, patient, at FROM accepted WHERE instance = ?", (row.instance,)
        ).fetchall()
        for _, content, patient, at in known:
            day = datetime.fromtimestamp(at, UTC).date().isoformat()
            if patient != row.patient:
                return f"this instance was accepted on {day} for another patient"
            if content != row.content:
                return f"this instance was accepted on {day} with other signed content"
        if all(signer != row.signer for signer, *_ in known):
            values = (row.instance, row.signer, row.content, row.patient, self._clock())
            self._database.execute("INSERT INTO accepted VALUES (?, ?, ?, ?, ?)", values)
            self._inserted += 1
            self._rows += 1
            if self._inserted % _PRUNE_EVERY == 0:
                self._rows -= self._prune()
        return None

    def _prune(self) -> int:
        if self._age_s_max is None:
            return 0
        return self._database.execute("DELETE FROM accepted WHERE at < ?", (self._clock() - self._age_s_max,)).rowcount

    def _row(self, claim: Claim) -> _Row:
        return _Row(
            self._mac(b"instance", claim.scope.encode(), claim.instance.encode()),
            bytes.fromhex(claim.signer),
            self._mac(b"content", bytes.fromhex(claim.content)),
            self._mac(b"patient", *claim.patient),
        )

    def _mac(self, *parts: bytes) -> bytes:
        """HMAC-SHA-256 over parts that cannot run into one another."""
        return hmac.digest(self._key, b"".join(len(part).to_bytes(4, "big") + part for part in parts), "sha256")


def _open(path: Path, key_check: bytes) -> sqlite3.Connection:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        database = sqlite3.connect(path, check_same_thread=False, timeout=5.0, isolation_level=None)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        found = database.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _SCHEMA_VERSION):
            raise ConfigError([f"replay ledger {path}: schema version {found}, this is version {_SCHEMA_VERSION}"])
        database.executescript(_SCHEMA)
        database.execute("INSERT INTO key_check SELECT ? WHERE NOT EXISTS (SELECT 1 FROM key_check)", (key_check,))
        database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        checked = database.execute("SELECT value FROM key_check").fetchone()[0]
    except (OSError, sqlite3.Error) as error:
        raise ConfigError([f"replay ledger {path}: cannot be opened ({type(error).__name__})"]) from None
    if not hmac.compare_digest(checked, key_check):
        database.close()
        # With another key every instance would look new, and nobody would notice that the memory is gone.
        raise ConfigError(
            [f"replay ledger {path}: made with another keys.quarantine; put that back, or begin without the file"]
        )
    return database
