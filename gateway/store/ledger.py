"""Remembers what each scan was answered, so that the same bytes are never answered twice differently.

"Same" is the scan's digest, its route, who sent it, and the digests of everything that the answer depends on: a new
policy, model or artefact is a new question. SQLite in WAL mode with synchronous=NORMAL: a killed process loses
nothing; a power cut may lose the last answers, and then the scan is examined again, with detectors that are seeded by
the scan itself, while the audit log has both records.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import structlog

from gateway import documents
from gateway.case import Digests
from gateway.deadline import Deadline
from gateway.errors import ConfigError, Overloaded
from gateway.finding import GatewayReason
from gateway.reply import Reply
from gateway.scan import Scan
from signing import Reason

TRANSIENT = frozenset(
    {
        GatewayReason.TIMEOUT,
        GatewayReason.WORKER_LOST,
        GatewayReason.DETECTOR_ERROR,
        Reason.REVOCATION_UNKNOWN,
        Reason.NOT_YET_VALID,
    }
)
"""Reasons that lie in the hour, not in the scan: an answer that has one is given, but not remembered."""

_SCHEMA_VERSION = 1
_PRUNE_EVERY = 256
_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Turn:
    """One caller's turn with a scan: the answer that was given before, or the duty to `settle` one."""

    earlier: Reply | None = None
    _answer: Reply | None = field(default=None, init=False)
    _over: threading.Event = field(default_factory=threading.Event, init=False)

    def settle(self, reply: Reply) -> None:
        """Give the answer to those who wait for the same scan; it is remembered when the turn ends."""
        self._answer = reply


class Ledger:
    """Answers by scan, on disk; thread-safe, for one process."""

    def __init__(self, path: Path, *, rows_max: int, age_s_max: float, clock: Callable[[], float] = time.time) -> None:
        """`rows_max` and `age_s_max` bound what is remembered; the oldest go first."""
        self._rows_max = rows_max
        self._age_s_max = age_s_max
        self._clock = clock
        self._lock = threading.Lock()
        self._turns: dict[bytes, Turn] = {}
        self._database_lock = threading.Lock()
        self._inserted = 0
        self._database = _open(path)

    @contextmanager
    def turn(
        self, scan: Scan, digests: Digests, deadline: Deadline, *, stands: Callable[[Reply], bool] = lambda _: True
    ) -> Iterator[Turn]:
        """Wait until nobody else examines the same scan, then say what was answered before.

        Of several callers with the same scan the first examines, and the others get its answer; if it fails, the
        next takes over. A remembered answer that no longer `stands` is none.

        Raises:
            Overloaded: the deadline passed while another caller examined the same scan; the ledger is not usable.
        """
        key = bytes.fromhex(question(scan, digests))
        turn = self._take(key, deadline, stands)
        if turn.earlier is not None:
            yield turn
            return
        try:
            yield turn
            if turn._answer is not None and not any(finding.reason in TRANSIENT for finding in turn._answer.findings):
                self._remember(key, turn._answer)
        except BaseException:
            turn._answer = None  # those who wait must not be given what its own caller was not
            raise
        finally:
            with self._lock:
                del self._turns[key]
            turn._over.set()

    def revise(self, asked: str, reply: Reply | None) -> None:
        """Put another answer in the place of what was answered to a question, or None: let it be examined anew.

        Waits for whoever examines the same scan now: what people decided must not be overwritten by what it was
        decided about.

        Raises:
            Overloaded: the ledger cannot be written.
        """
        key = bytes.fromhex(asked)
        while True:
            with self._lock:
                turn = self._turns.get(key)
            if turn is None:
                break
            turn._over.wait()
        if reply is not None:
            self._remember(key, reply)
            return
        try:
            with self._database_lock, self._database:
                self._database.execute("DELETE FROM replies WHERE key = ?", (key,))
        except sqlite3.Error as error:
            raise Overloaded(f"the ledger cannot be written: {type(error).__name__}") from None

    def close(self) -> None:
        """Close the database; the ledger cannot be used after."""
        with self._database_lock:
            self._database.close()

    def _take(self, key: bytes, deadline: Deadline, stands: Callable[[Reply], bool]) -> Turn:
        while True:
            with self._lock:
                other = self._turns.get(key)
                if other is None:
                    turn = self._turns[key] = Turn()
                    break
            if not other._over.wait(deadline.remaining()):
                raise Overloaded("the same scan is still being examined for another caller")
            if other._answer is not None:
                return Turn(replace(other._answer, earlier=True))
        try:
            earlier = self._recall(key)
            earlier = earlier if earlier is not None and stands(earlier) else None
        except BaseException:
            with self._lock:
                del self._turns[key]
            turn._over.set()
            raise
        if earlier is not None:
            with self._lock:
                del self._turns[key]
            turn._answer = turn.earlier = earlier
            turn._over.set()
        return turn

    def _recall(self, key: bytes) -> Reply | None:
        try:
            with self._database_lock:
                row = self._database.execute(
                    "SELECT reply FROM replies WHERE key = ? AND at >= ?", (key, self._clock() - self._age_s_max)
                ).fetchone()
        except sqlite3.Error as error:
            raise Overloaded(f"the ledger cannot be read: {type(error).__name__}") from None
        if row is None:
            return None
        try:
            return replace(documents.to_reply(json.loads(row[0])), earlier=True)
        except (KeyError, TypeError, ValueError) as error:
            _log.error("ledger_row_unreadable", error=type(error).__name__)
            return None

    def _remember(self, key: bytes, reply: Reply) -> None:
        row = (key, self._clock(), documents.canonical(documents.of_reply(reply)))
        try:
            with self._database_lock, self._database:
                self._database.execute("INSERT OR REPLACE INTO replies (key, at, reply) VALUES (?, ?, ?)", row)
                if self._inserted % _PRUNE_EVERY == 0:
                    self._prune()
                self._inserted += 1
        except sqlite3.Error as error:
            raise Overloaded(f"the ledger cannot be written: {type(error).__name__}") from None

    def _prune(self) -> None:
        self._database.execute("DELETE FROM replies WHERE at < ?", (self._clock() - self._age_s_max,))
        self._database.execute(
            "DELETE FROM replies WHERE key IN (SELECT key FROM replies ORDER BY at DESC LIMIT -1 OFFSET ?)",
            (self._rows_max,),
        )


def _open(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        database = sqlite3.connect(path, check_same_thread=False, timeout=5.0)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        found = database.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, _SCHEMA_VERSION):
            raise ConfigError([f"ledger {path}: schema version {found}, this is version {_SCHEMA_VERSION}"])
        with database:
            database.execute(
                "CREATE TABLE IF NOT EXISTS replies (key BLOB PRIMARY KEY, at REAL NOT NULL, reply BLOB NOT NULL)"
            )
            database.execute("CREATE INDEX IF NOT EXISTS replies_at ON replies (at)")
            database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
    except (OSError, sqlite3.Error) as error:
        raise ConfigError([f"ledger {path}: cannot be opened ({type(error).__name__})"]) from None
    return database


def question(scan: Scan, digests: Digests) -> str:
    """What a call asks, as 64 hexadecimal digits: calls with the same one get the same answer."""
    document = {
        "scan": scan.sha256,
        "bare": scan.tensor is not None,  # a tensor's file, sent as an object, is another question
        "route": scan.route,
        "source": asdict(scan.source),
        "digests": asdict(digests),
    }
    return hashlib.sha256(documents.canonical(document)).hexdigest()
