"""Keeps what the gateway has promised to do something with: on disk, encrypted, until it is done.

One file an object, `SEQUENCE-NAME.object`: the facts about it, sealed, then its bytes, sealed. The sequence orders by
arrival; the name is an HMAC of the caller's key, so that a directory listing tells nobody what waits, and the same
object is not kept twice. A file gets its name when it is whole and on disk: what a crash cut off has no name.
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
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gateway import documents, durable
from gateway.errors import ConfigError, Overloaded
from gateway.store.kek import Kek, VaultError
from gateway.store.vault import Vault, sealed_bytes

FACTS_BYTES_MAX = 16384
"""Of the facts about one object: names, digests, a title; never a header value of any length."""

_FILE = re.compile(r"([0-9a-f]{16})-([0-9a-f]{32})\.object")
_BLOCK_BYTES = 4096
_LENGTH_BYTES = 4
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Parcel:
    """One object in custody, and what is to be known about it."""

    id: str
    """`SEQUENCE-NAME`; ordered by arrival, says nothing about the object to whoever lacks the key."""
    facts: Mapping[str, Any]
    """As they were given."""
    _custody: Custody

    def chunks(self) -> Iterator[bytes]:
        """The object's bytes as they came, at most 1 MiB at a time.

        Raises:
            VaultError: while iterating, where the file is not as it was written.
        """
        return self._custody.read(self.id)


class Custody:
    """A private directory of objects, bounded in bytes and number; thread-safe, for one process."""

    def __init__(self, directory: Path, kek: Kek, *, bytes_max: int, objects_max: int) -> None:
        """Open or create; throws away what a crash left without a name.

        Args:
            directory: for this custody alone; created with mode 0700.
            kek: wraps one data key an object.
            bytes_max: on disk, all objects together.
            objects_max: number of objects.
        """
        self._directory = directory
        self._vault = Vault(kek)
        self._name_key = kek.derive(b"scanward custody names v1")
        self._bytes_max = bytes_max
        self._objects_max = objects_max
        self._lock = threading.Lock()
        self._claim = _claim(directory)
        self._sizes = _clean(directory)
        self._ids = {identity.partition("-")[2]: identity for identity in self._sizes}
        self._used = sum(self._sizes.values())
        self._last = max((int(identity[:16], 16) for identity in self._sizes), default=0)

    def put(self, data: memoryview, facts: Mapping[str, Any], *, key: str) -> tuple[str, bool]:
        """Take an object; it is on disk when this returns its id, and whether it is new.

        Args:
            data: the object's bytes.
            facts: what JSON can hold, at most `FACTS_BYTES_MAX` of it.
            key: an object of the same key that still waits is not kept a second time.

        Raises:
            Overloaded: there is no room, or the disk is full or fails.
        """
        name = hmac.new(self._name_key, key.encode(), hashlib.sha256).hexdigest()[:32]
        sealed = documents.canonical(dict(facts))
        if len(sealed) > FACTS_BYTES_MAX:
            raise ValueError(f"facts of {len(sealed)} bytes; at most {FACTS_BYTES_MAX}")
        size = _on_disk(_LENGTH_BYTES + sealed_bytes(len(sealed)) + sealed_bytes(len(data)))
        with self._lock:
            if name in self._ids:
                return self._ids[name], False
            if self._used + size > self._bytes_max or len(self._sizes) >= self._objects_max:
                raise Overloaded("what waits here has no room for another object")
            self._last = max(self._last + 1, time.time_ns())  # a clock that steps back changes no order
            identity = f"{self._last:016x}-{name}"
            self._used += size
            self._sizes[identity] = size
        try:
            self._write(identity, sealed, data)
        except BaseException as error:
            with self._lock:
                self._forget(identity)
            if isinstance(error, OSError):
                raise _full(error) from None
            raise
        with self._lock:
            self._ids[name] = identity
        return identity, True

    def waiting(self) -> list[str]:
        """Ids of what is here, in order of arrival."""
        with self._lock:
            return sorted(self._ids.values())

    def parcel(self, identity: str) -> Parcel:
        """One object with its facts; raises VaultError where the file is not as it was written."""
        with self._path(identity).open("rb") as file:
            return Parcel(identity, json.loads(self._facts(identity, file)), self)

    def read(self, identity: str) -> Iterator[bytes]:
        """See `Parcel.chunks`."""
        with self._path(identity).open("rb") as file:
            facts = self._facts(identity, file)
            yield from self._vault.open(file, _data_context(identity, facts))

    def done(self, identity: str) -> None:
        """Let go of an object; a power cut may bring it back, so whoever is handed it must bear to have it twice."""
        with contextlib.suppress(OSError):
            self._path(identity).unlink(missing_ok=True)
        with self._lock:
            self._ids.pop(identity.partition("-")[2], None)
            self._forget(identity)

    def close(self) -> None:
        """Let another process have the directory; may be called again."""
        claim, self._claim = self._claim, -1
        if claim >= 0:
            os.close(claim)

    def _write(self, identity: str, facts: bytes, data: memoryview) -> None:
        part = self._directory / f"{identity}.part"
        head = io.BytesIO()
        self._vault.seal(memoryview(facts), _facts_context(identity), head)
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(len(head.getvalue()).to_bytes(_LENGTH_BYTES, "big") + head.getvalue())
                self._vault.seal(data, _data_context(identity, facts), file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self._path(identity))
            durable.sync_directory(self._directory)
        except BaseException:
            for path in (part, self._path(identity)):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
            raise

    def _facts(self, identity: str, file: IO[bytes]) -> bytes:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "big")
        if length > sealed_bytes(FACTS_BYTES_MAX):
            raise VaultError("not an object in custody")
        return b"".join(self._vault.open(io.BytesIO(file.read(length)), _facts_context(identity)))

    def _path(self, identity: str) -> Path:
        return self._directory / f"{identity}.object"

    def _forget(self, identity: str) -> None:
        self._used -= self._sizes.pop(identity, 0)


def _facts_context(identity: str) -> bytes:
    return f"facts\x00{identity}".encode()


def _data_context(identity: str, facts: bytes) -> bytes:
    return f"data\x00{identity}\x00{hashlib.sha256(facts).hexdigest()}".encode()


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def _full(error: OSError) -> Overloaded:
    if error.errno in _DISK_FULL:
        return Overloaded("the disk of what waits here is full")
    return Overloaded(f"the disk of what waits here failed: {errno.errorcode.get(error.errno or 0, 'unknown')}")


def _claim(directory: Path) -> int:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        claim = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError([f"directory {directory}: {error.strerror}"]) from None
    try:
        fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(claim)
        raise ConfigError([f"directory {directory}: another process has it"]) from None
    return claim


def _clean(directory: Path) -> dict[str, int]:
    """Size on disk of each object by id; removes parts, which nobody was told were kept."""
    sizes = {}
    for file in directory.iterdir():
        if _FILE.fullmatch(file.name):
            sizes[file.stem] = _on_disk(file.stat().st_size)
        elif file.suffix == ".part":
            file.unlink()
    return sizes
