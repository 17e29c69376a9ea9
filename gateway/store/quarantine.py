"""Holds scans that were neither admitted nor rejected, encrypted, until somebody decides about them; only stores.

An object's files are named by an HMAC of scan and route, so that a directory listing tells nobody which scans are held:
`ID.scan` has the bytes as received, `ID.case` what was found, each time the scan was examined, and what people decided;
`ID.map`, once it was drawn, the picture of where the detectors disagreed.
The case is the one truth about an object: it is written last and removed first, and each change replaces it whole, so
that a crash leaves it as it was before or as it is after.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import structlog

from gateway import documents, durable
from gateway.case import Case
from gateway.errors import ConfigError, NotHeld, Overloaded
from gateway.reply import Reply
from gateway.scan import Scan
from gateway.store.held import Act, Examination, Held, State, of_held, to_held
from gateway.store.holdings import CASE, IDENTITY, MAP, SCAN, claim, clean, disk, on_disk, taken
from gateway.store.kek import KEY_BYTES, Kek, VaultError
from gateway.store.vault import Vault, sealed_bytes
from gateway.telemetry.metrics import Metrics
from gateway.verdict import Verdict

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Part:
    path: Path
    size: int
    """Bytes reserved for it."""


class Quarantine:
    """A private directory of held scans, bounded in bytes; thread-safe, for one process."""

    def __init__(self, directory: Path, kek: Kek, *, name_key: bytes, bytes_max: int, metrics: Metrics) -> None:
        """Open or create; throws away what a crash left half-written.

        Args:
            directory: for this quarantine alone; created with mode 0700.
            kek: wraps one data key an object.
            name_key: 32 bytes or more, makes the names.
            bytes_max: on disk, all objects together.
            metrics: told how many are held.
        """
        if len(name_key) < KEY_BYTES:
            raise ConfigError([f"the key of the quarantine's names must have {KEY_BYTES} bytes"])
        self._directory = directory
        self._vault = Vault(kek)
        self._name_key = name_key
        self._bytes_max = bytes_max
        self._metrics = metrics
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._claim = claim(directory)
        self._states: dict[str, tuple[State | None, float]] = {}
        """By id: where it stands and since when, seconds since the epoch; None where its case cannot be read."""
        for identity in clean(directory):
            self._note(identity)
        self._used = sum(on_disk(file.stat().st_size) for file in directory.iterdir())
        metrics.quarantine(lambda: (self._used, bytes_max), self._waiting_since)
        metrics.held(self._waiting())

    def hold(self, case: Case, verdict: Verdict) -> str:
        """Put a scan and what was found into quarantine; on disk when this returns its id.

        The same scan on the same route is held once; a later examination of it is added to its case.

        Raises:
            Overloaded: the quarantine or the disk is full, or the disk fails.
        """
        identity = self._identity(case.scan)
        examination = Examination.of(case, verdict)
        with disk():
            part = None if identity in self._states else self._seal_scan(identity, case)
            with self._lock:
                if identity in self._states:
                    self._add(identity, examination, part)
                    return identity
                if part is not None:
                    self._place(identity, case, examination, part)
                    return identity
        return self.hold(case, verdict)  # it was removed between the two looks

    def has(self, identity: str) -> bool:
        """Whether there is such a scan, whatever was decided about it."""
        with self._lock:
            return identity in self._states

    def ids(self, *states: State, before: float = float("inf")) -> tuple[str, ...]:
        """Ids, in order, of what has been in one of these states since `before` (seconds since the epoch) or longer.

        No state: in any, what cannot be read included.
        """
        with self._lock:
            known = sorted(self._states.items())
        return tuple(each for each, (state, since) in known if not states or (state in states and since < before))

    def list(self) -> Iterator[Held]:
        """Every scan that is there, whatever was decided, in order of id; one that cannot be read is left out."""
        for identity in self.ids():
            with contextlib.suppress(NotHeld, VaultError):  # removed since; logged when the quarantine was opened
                yield self.show(identity)

    def show(self, identity: str) -> Held:
        """One held scan.

        Raises:
            NotHeld: there is none of that id.
            VaultError: its case is not as it was written.
        """
        self._require(identity)
        try:
            return self._load(identity)
        except FileNotFoundError:
            raise NotHeld from None

    @contextmanager
    def turn(self, identity: str) -> Iterator[Held]:
        """Keep others from deciding about a scan while one caller does.

        Raises:
            NotHeld: there is none of that id.
            Overloaded: somebody else is deciding about it now.
        """
        self._require(identity)
        with self._lock:
            if identity in self._busy:
                raise Overloaded("somebody else is deciding about this scan now")
            self._busy.add(identity)
        try:
            yield self.show(identity)
        finally:
            with self._lock:
                self._busy.discard(identity)

    def decide(
        self,
        before: Held,
        state: State,
        acts: tuple[Act, ...],
        reply: Reply | None = None,
        examination: Examination | None = None,
    ) -> Held:
        """Write down where a scan stands now and who said so; on disk when this returns.

        What was asked about the scan only since `before`, nobody has let go: then the case stays as it is, open for
        another decision, and what comes back is what was decided about `before`. A scan that stays out stays out.

        `reply` and `examination`: of a release that was carried out, its answer and what that was given on.

        Raises:
            Overloaded: the disk is full or fails. A full quarantine does not hinder a decision: it is what empties it.
        """

        def decided(held: Held) -> Held:
            held = replace(held, state=state, acts=acts, reply=reply)
            return held if examination is None else held.with_examination(examination)

        with disk(), self._lock:
            now = self._load(before.id)
            if state is not State.CONFIRMED and not now.questions <= decided(before).questions:
                return decided(before)
            self._store_case(decided(now), bounded=False)
        return decided(now)

    def remove(self, held: Held) -> bool:
        """Forget a scan and what is known about it; gone from disk when this returns.

        False where more is known by now: somebody has just been told that the scan is held.

        Raises:
            Overloaded: the disk fails.
        """
        with disk(), self._lock:
            if self._load(held.id) != held:
                return False
            case, others = self._path(held.id, CASE), [self._path(held.id, kind) for kind in (SCAN, MAP)]
            size = sum(map(taken, (case, *others)))
            case.unlink()
            durable.sync_directory(self._directory)  # the case first: a scan without one is thrown away at a start
            for file in others:
                file.unlink(missing_ok=True)
            self._used -= size
            del self._states[held.id]
            self._metrics.held(self._waiting())
        return True

    def read(self, identity: str) -> Iterator[bytes]:
        """The bytes of a held scan as they were received, in chunks of at most 1 MiB.

        Raises:
            NotHeld: there is none of that id.
            VaultError: while iterating, where the file is not as it was written.
        """
        context = _scan_context(identity, self.show(identity).scan_sha256)
        try:
            file = self._path(identity, SCAN).open("rb")
        except FileNotFoundError:
            raise NotHeld from None
        with file:
            yield from self._vault.open(file, context)

    def keep_map(self, held: Held, picture: bytes) -> None:
        """Keep the picture of where the detectors disagreed about a held scan; on disk when this returns.

        Raises:
            NotHeld: it is there no more, or more was found of it meanwhile.
            Overloaded: the quarantine or the disk is full, or the disk fails.
        """
        sealed = io.BytesIO()
        self._vault.seal(memoryview(picture), _map_context(held.id, held.scan_sha256), sealed)
        path, data = self._path(held.id, MAP), sealed.getvalue()
        with disk(), self._lock:
            if held.id not in self._states or self._load(held.id).examinations != held.examinations:
                raise NotHeld
            grows = on_disk(len(data)) - taken(path)
            if self._used + grows > self._bytes_max:
                raise Overloaded("the quarantine is full")
            durable.replace(path, data)
            self._used += grows

    def map_of(self, held: Held) -> bytes | None:
        """The picture that was kept; None where there is none. Raises VaultError where it is not as it was written."""
        try:
            file = self._path(held.id, MAP).open("rb")
        except FileNotFoundError:
            return None
        with file:
            return b"".join(self._vault.open(file, _map_context(held.id, held.scan_sha256)))

    def close(self) -> None:
        """Let another process have the directory."""
        os.close(self._claim)

    def _identity(self, scan: Scan) -> str:
        """A tensor's file, sent as an object, is another scan."""
        kind = "tensor" if scan.tensor is not None else "object"
        named = f"{scan.sha256}\x00{scan.route}\x00{kind}"
        return hmac.new(self._name_key, named.encode(), hashlib.sha256).hexdigest()[:32]

    def _path(self, identity: str, kind: str) -> Path:
        return self._directory / f"{identity}.{kind}"

    def _require(self, identity: str) -> None:
        if not IDENTITY.fullmatch(identity) or identity not in self._states:
            raise NotHeld

    def _seal_scan(self, identity: str, case: Case) -> _Part:
        """The scan's bytes, encrypted and on disk, under a name that a restart throws away."""
        data = case.scan.data
        size = on_disk(sealed_bytes(len(data)))
        self._reserve(size)
        part = _Part(self._directory / f"{identity}.{os.urandom(8).hex()}.part", size)
        try:
            descriptor = os.open(part.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                self._vault.seal(data, _scan_context(identity, case.scan.sha256), file)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            with self._lock:
                self._drop(part.path, part.size)
            raise
        return part

    def _place(self, identity: str, case: Case, examination: Examination, part: _Part) -> None:
        """Give the part its name and write its case; holds the lock."""
        scan = case.scan
        path = self._path(identity, SCAN)
        try:
            part.path.replace(path)
            self._store_case(
                Held(
                    identity,
                    scan.sha256,
                    len(scan.data),
                    scan.modality,
                    scan.route,
                    scan.receiver,
                    scan.tensor is not None,
                    examination.received_at,
                    (examination,),
                )
            )
        except BaseException:
            self._drop(part.path, part.size)
            with contextlib.suppress(OSError):  # the case first, which may be there: only its name was not made durable
                self._path(identity, "case").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
            raise

    def _add(self, identity: str, examination: Examination, part: _Part | None) -> None:
        """Write a later examination into the case of a scan that is held already; holds the lock."""
        if part is not None:  # another caller was faster
            self._drop(part.path, part.size)
        self._drop(self._path(identity, MAP), taken(self._path(identity, MAP)))  # it spoke of an earlier examination
        self._store_case(self._load(identity).examined_again(examination))

    def _drop(self, path: Path, size: int) -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        self._used -= size

    def _store_case(self, held: Held, *, bounded: bool = True) -> None:
        """Replace the case; holds the lock."""
        sealed = io.BytesIO()
        self._vault.seal(memoryview(documents.canonical(of_held(held))), _case_context(held.id), sealed)
        path = self._path(held.id, CASE)
        grows = on_disk(len(sealed.getvalue())) - taken(path)
        if bounded and self._used + grows > self._bytes_max:
            raise Overloaded("the quarantine is full")
        durable.replace(path, sealed.getvalue())  # also makes the name of ID.scan durable: same directory
        self._used += grows
        self._states[held.id] = _standing(held)
        self._metrics.held(self._waiting())

    def _load(self, identity: str) -> Held:
        with self._path(identity, CASE).open("rb") as file:
            document = json.loads(b"".join(self._vault.open(file, _case_context(identity))))
        try:
            return to_held(identity, document)
        except (KeyError, TypeError, ValueError) as error:
            raise VaultError(f"a held case is of another version ({type(error).__name__})") from None

    def _note(self, identity: str) -> None:
        """Remember where an object stands; one that cannot be read is kept, and counts as waiting."""
        try:
            self._states[identity] = _standing(self._load(identity))
        except (OSError, VaultError) as error:
            _log.error("quarantine_case_unreadable", quarantine_id=identity, error=type(error).__name__)
            self._states[identity] = (None, float("inf"))

    def _waiting(self) -> int:
        return sum(state in {State.HELD, None} for state, _ in self._states.values())

    def _waiting_since(self) -> float | None:
        with self._lock:
            return min((since for state, since in self._states.values() if state is State.HELD), default=None)

    def _reserve(self, size: int) -> None:
        with self._lock:
            if self._used + size > self._bytes_max:
                raise Overloaded("the quarantine is full")
            self._used += size


def _standing(held: Held) -> tuple[State, float]:
    """Where it stands and since when: waiting since it was held, or decided since the last act."""
    at = held.since if held.state is State.HELD else held.acts[-1].at
    return held.state, datetime.fromisoformat(at).timestamp()


def _scan_context(identity: str, sha256: str) -> bytes:
    return f"scan\x00{identity}\x00{sha256}".encode()


def _map_context(identity: str, sha256: str) -> bytes:
    return f"map\x00{identity}\x00{sha256}".encode()


def _case_context(identity: str) -> bytes:
    return f"case\x00{identity}".encode()
