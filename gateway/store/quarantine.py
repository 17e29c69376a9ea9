"""Holds scans that were neither admitted nor rejected, encrypted, until somebody decides about them.

Two files an object, named by an HMAC of scan and route, so that a directory listing tells nobody which scans are held:
`ID.scan` has the bytes as received, `ID.case` what was found and decided, each time the scan was examined. The case is
written last: an object is held once both are on disk.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import io
import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gateway import documents, durable
from gateway.case import Case
from gateway.errors import ConfigError, Overloaded, ScanError
from gateway.finding import Finding
from gateway.metrics import Metrics
from gateway.store.vault import KEY_BYTES, Vault, VaultError, sealed_bytes
from gateway.verdict import Verdict

EXAMINATIONS_MAX = 16
"""Kept for one scan: the first, and the newest of the others."""

_ID = re.compile(r"[0-9a-f]{32}")
_SCHEMA = 1
_BLOCK_BYTES = 4096
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class _Part:
    path: Path
    size: int
    """Bytes reserved for it."""


@dataclass(frozen=True, slots=True)
class Examination:
    """What one examination of a held scan found, and why it was held."""

    received_at: str
    """RFC 3339, UTC."""
    verdict: Verdict
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """One scan in quarantine."""

    id: str
    """32 hexadecimal digits; says nothing about the scan to whoever lacks the name key."""
    scan_sha256: str
    bytes: int
    modality: str
    route: str
    receiver: str
    source: str
    examinations: tuple[Examination, ...]
    """In order of time; at least one."""


class Quarantine:
    """A private directory of held scans, bounded in bytes; thread-safe, for one process."""

    def __init__(self, directory: Path, kek: bytes, *, name_key: bytes, bytes_max: int, metrics: Metrics) -> None:
        """Open or create; throws away what a crash left half-written.

        Args:
            directory: for this quarantine alone; created with mode 0700.
            kek: 32 bytes, wraps one data key an object.
            name_key: 32 bytes or more, makes the names.
            bytes_max: on disk, all objects together.
            metrics: told how many are held.
        """
        if len(kek) != KEY_BYTES or len(name_key) < KEY_BYTES:
            raise ConfigError([f"quarantine keys must have {KEY_BYTES} bytes"])
        self._directory = directory
        self._vault = Vault(kek)
        self._name_key = name_key
        self._bytes_max = bytes_max
        self._metrics = metrics
        self._lock = threading.Lock()
        self._claim = _claim(directory)
        self._ids = _clean(directory)
        self._used = sum(_on_disk(file.stat().st_size) for file in directory.iterdir())
        metrics.held(len(self._ids))

    def hold(self, case: Case, verdict: Verdict) -> str:
        """Put a scan and what was found into quarantine; on disk when this returns its id.

        The same scan on the same route is held once; a later examination of it is added to its case.

        Raises:
            Overloaded: the quarantine or the disk is full, or the disk fails.
        """
        identity = self._identity(case.scan.sha256, case.scan.route)
        examination = Examination(case.received_at.isoformat(), verdict, case.findings)
        try:
            part = None if identity in self._ids else self._seal_scan(identity, case)
            with self._lock:
                if identity in self._ids:
                    self._add(identity, examination, part)
                else:
                    assert part is not None  # ids are never taken away
                    self._place(identity, case, examination, part)
        except OSError as error:
            if error.errno in _DISK_FULL:
                raise Overloaded("the quarantine's disk is full") from None
            name = errno.errorcode.get(error.errno or 0, "unknown")
            raise Overloaded(f"the quarantine's disk failed: {name}") from None
        return identity

    def list(self) -> Iterator[Held]:
        """Every held scan, in order of id."""
        for identity in sorted(self._ids):
            yield self._load(identity)

    def show(self, identity: str) -> Held:
        """One held scan; raises ScanError where there is none of that id."""
        self._require(identity)
        return self._load(identity)

    def read(self, identity: str) -> Iterator[bytes]:
        """The bytes of a held scan as they were received, in chunks of at most 1 MiB.

        Raises:
            ScanError: there is none of that id.
            VaultError: while iterating, where the file is not as it was written.
        """
        self._require(identity)
        context = _scan_context(identity, self._load(identity).scan_sha256)
        with self._path(identity, "scan").open("rb") as file:
            yield from self._vault.open(file, context)

    def close(self) -> None:
        """Let another process have the directory."""
        os.close(self._claim)

    def _identity(self, sha256: str, route: str) -> str:
        return hmac.new(self._name_key, f"{sha256}\x00{route}".encode(), hashlib.sha256).hexdigest()[:32]

    def _path(self, identity: str, kind: str) -> Path:
        return self._directory / f"{identity}.{kind}"

    def _require(self, identity: str) -> None:
        if not _ID.fullmatch(identity) or identity not in self._ids:
            raise ScanError("no scan of this id is held")

    def _seal_scan(self, identity: str, case: Case) -> _Part:
        """The scan's bytes, encrypted and on disk, under a name that a restart throws away."""
        data = case.scan.data
        size = _on_disk(sealed_bytes(len(data)))
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
        path = self._path(identity, "scan")
        try:
            part.path.replace(path)
            source = scan.source.name
            self._store_case(
                Held(
                    identity,
                    scan.sha256,
                    len(scan.data),
                    scan.modality,
                    scan.route,
                    scan.receiver,
                    source,
                    (examination,),
                )
            )
        except BaseException:
            self._drop(part.path, part.size)
            self._drop(path, 0)
            raise
        self._ids.add(identity)
        self._metrics.held(len(self._ids))

    def _add(self, identity: str, examination: Examination, part: _Part | None) -> None:
        """Write a later examination into the case of a scan that is held already; holds the lock."""
        if part is not None:  # another caller was faster
            self._drop(part.path, part.size)
        held = self._load(identity)
        examinations = (*held.examinations, examination)
        if len(examinations) > EXAMINATIONS_MAX:
            examinations = (examinations[0], *examinations[2:])
        self._store_case(replace(held, examinations=examinations))

    def _drop(self, path: Path, size: int) -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        self._used -= size

    def _store_case(self, held: Held) -> None:
        document = {
            "schema": _SCHEMA,
            "scan_sha256": held.scan_sha256,
            "bytes": held.bytes,
            "modality": held.modality,
            "route": held.route,
            "receiver": held.receiver,
            "source": held.source,
            "examinations": [
                {
                    "received_at": examination.received_at,
                    "verdict": documents.of_verdict(examination.verdict),
                    "findings": [documents.of_finding(finding) for finding in examination.findings],
                }
                for examination in held.examinations
            ],
        }
        sealed = io.BytesIO()
        self._vault.seal(memoryview(documents.canonical(document)), _case_context(held.id), sealed)
        path = self._path(held.id, "case")
        before = _on_disk(path.stat().st_size) if path.exists() else 0
        grows = _on_disk(len(sealed.getvalue())) - before
        if self._used + grows > self._bytes_max:
            raise Overloaded("the quarantine is full")
        durable.replace(path, sealed.getvalue())  # also makes the name of ID.scan durable: same directory
        self._used += grows

    def _load(self, identity: str) -> Held:
        with self._path(identity, "case").open("rb") as file:
            document: dict[str, Any] = json.loads(b"".join(self._vault.open(file, _case_context(identity))))
        if document["schema"] != _SCHEMA:
            raise VaultError(f"a held case has schema {document['schema']}, this is {_SCHEMA}")
        return Held(
            identity,
            document["scan_sha256"],
            document["bytes"],
            document["modality"],
            document["route"],
            document["receiver"],
            document["source"],
            tuple(
                Examination(
                    examination["received_at"],
                    documents.to_verdict(examination["verdict"]),
                    tuple(documents.to_finding(finding) for finding in examination["findings"]),
                )
                for examination in document["examinations"]
            ),
        )

    def _reserve(self, size: int) -> None:
        with self._lock:
            if self._used + size > self._bytes_max:
                raise Overloaded("the quarantine is full")
            self._used += size


def _scan_context(identity: str, sha256: str) -> bytes:
    return f"scan\x00{identity}\x00{sha256}".encode()


def _case_context(identity: str) -> bytes:
    return f"case\x00{identity}".encode()


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def _claim(directory: Path) -> int:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        claim = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError([f"quarantine directory {directory}: {error.strerror}"]) from None
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(claim)
        raise ConfigError([f"quarantine directory {directory}: another process has it"]) from None
    return claim


def _clean(directory: Path) -> set[str]:
    """Ids of what is held; removes parts, and scans without a case, which nobody was told were held."""
    ids = {file.stem for file in directory.glob("*.case") if _ID.fullmatch(file.stem)}
    for file in directory.iterdir():
        if file.suffix == ".part" or (file.suffix == ".scan" and file.stem not in ids):
            file.unlink()
    return ids
