"""Takes in the bytes of one object as they arrive, hashing on the way, without ever holding many in memory.

Up to `MEMORY_BYTES_MAX` an object stays in memory; past that it goes to a file that has no name, so that nobody can
swap it between the digest and the parse, and nothing is left behind by a crash. What the sender claims about the size
reserves nothing: only bytes that came count against the budget.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import tempfile
import threading
import weakref
from collections import Counter, deque
from pathlib import Path
from types import TracebackType
from typing import IO

from gateway.errors import ConfigError, Overloaded, TooLarge
from signing.hashed import Hashed
from signing.streaming import Incoming

MEMORY_BYTES_MAX = 1 << 20
"""Larger objects go to disk; a slice of 512 x 512 x 16 bit (0.5 MB) does not."""

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Spool:
    """A byte budget and a private directory, shared by all doors; thread-safe."""

    def __init__(self, directory: Path, *, bytes_max_per_object: int, bytes_max_total: int) -> None:
        """`bytes_max_total` bounds what lives at once, in memory and on disk together."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=directory).close()
        except OSError as error:
            raise ConfigError([f"spool directory {directory}: {error.strerror}"]) from None
        self.directory = directory
        self.bytes_max_per_object = bytes_max_per_object
        self._bytes_max_total = bytes_max_total
        self._lock = threading.Lock()
        self._used: Counter[str] = Counter()
        self._released: deque[tuple[str, int]] = deque()

    def open(self, size_hint: int = 0, *, owner: str = "", share: float = 1.0) -> SpoolWriter:
        """A writer for one object.

        Args:
            size_hint: the sender's claim, believed only where it condemns the object.
            owner: whose bytes they are.
            share: of the whole budget, that one owner's objects may take.

        Raises:
            TooLarge: the claim is over the largest object.
            Overloaded: the claim does not fit into what is left now.
        """
        if size_hint > self.bytes_max_per_object:
            raise TooLarge(f"the object is larger than {self.bytes_max_per_object} bytes")
        if size_hint > self._bytes_max_total - self.bytes_used:
            raise Overloaded("the spool has no room for an object of this size")
        return SpoolWriter(self, owner, int(share * self._bytes_max_total))

    @property
    def bytes_used(self) -> int:
        """Bytes of all objects that are being received or still in use."""
        with self._lock:
            return self._settle()

    def reserve(self, count: int, owner: str, owner_max: int) -> None:
        """Take bytes from the budget and the owner's share of it; raises Overloaded where they are not there."""
        with self._lock:
            if self._settle() + count > self._bytes_max_total:
                raise Overloaded("the spool is full")
            if self._used[owner] + count > owner_max:
                raise Overloaded("the spool holds as much of this caller as it may")
            self._used[owner] += count

    def release(self, count: int, owner: str) -> None:
        """Give bytes back; takes no lock, since the garbage collector may call it from anywhere."""
        self._released.append((owner, count))

    def _settle(self) -> int:
        while self._released:
            owner, count = self._released.popleft()
            self._used[owner] -= count
            if not self._used[owner]:
                del self._used[owner]
        return self._used.total()


class _Memory(bytearray):
    """A bytearray that can be watched: its budget goes back when the last view of it is dropped."""


class SpoolWriter:
    """One object on its way in; leaving the `with` block before `seal` throws it away."""

    def __init__(self, spool: Spool, owner: str, owner_max: int) -> None:
        self._spool = spool
        self._owner = owner
        self._owner_max = owner_max
        self._hash = hashlib.sha256()
        self._memory: _Memory | None = _Memory()
        self._file: IO[bytes] | None = None
        self._incoming: Incoming | None = None
        self._open = True
        self.size = 0
        """Bytes so far."""

    def write(self, chunk: bytes | memoryview) -> None:
        """Take the next bytes.

        Raises:
            TooLarge: the object is over the largest size.
            Overloaded: the budget or the disk is full.
        """
        if not self._open:
            raise ValueError("the object is sealed or discarded")
        count = len(chunk)
        if self.size + count > self._spool.bytes_max_per_object:
            raise TooLarge(f"the object is larger than {self._spool.bytes_max_per_object} bytes")
        self._spool.reserve(count, self._owner, self._owner_max)
        self.size += count
        self._hash.update(chunk)
        if self._memory is not None and self.size > MEMORY_BYTES_MAX:
            self._to_disk(self._memory)
            self._incoming = Incoming(self._memory)
            self._memory = None
        if self._memory is not None:
            self._memory += chunk
        else:
            assert self._incoming is not None
            self._incoming.write(chunk)
            self._write(chunk)

    @property
    def sha256(self) -> str:
        """Lower-case hexadecimal digest of the bytes so far."""
        return self._hash.hexdigest()

    def hashed(self) -> Hashed | None:
        """What was hashed on the way of that which the object's signatures cover; None for small objects."""
        return self._incoming.hashed() if self._incoming is not None else None

    def seal(self) -> memoryview:
        """The whole object, read-only; memory, file and budget are freed when the last view of it is dropped."""
        if not self._open:
            raise ValueError("the object is sealed or discarded")
        self._open = False
        keeper: _Memory | mmap.mmap
        if self._file is not None:
            keeper = mmap.mmap(self._file.fileno(), self.size, prot=mmap.PROT_READ)
            self._file.close()
        else:
            assert self._memory is not None
            keeper = self._memory
        weakref.finalize(keeper, self._spool.release, self.size, self._owner).atexit = False
        self._memory = self._file = None
        return memoryview(keeper).toreadonly()

    def discard(self) -> None:
        """Throw the object away; does nothing once it is sealed."""
        if not self._open:
            return
        self._open = False
        if self._file is not None:
            self._file.close()
        self._memory = self._file = None
        self._spool.release(self.size, self._owner)

    def __enter__(self) -> SpoolWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def __del__(self) -> None:
        self.discard()

    def _to_disk(self, so_far: bytearray) -> None:
        try:
            # O_TMPFILE where the file system has it, else unlinked at once; mode 0600 either way.
            self._file = tempfile.TemporaryFile(dir=self._spool.directory, buffering=0)  # noqa: SIM115 - kept open
        except OSError as error:
            raise _full(error) from None
        self._write(so_far)

    def _write(self, chunk: bytes | bytearray | memoryview) -> None:
        assert self._file is not None
        rest = memoryview(chunk)
        try:
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        except OSError as error:
            raise _full(error) from None


def _full(error: OSError) -> Overloaded:
    if error.errno in _DISK_FULL:
        return Overloaded("the spool's disk is full")
    return Overloaded(f"the spool's disk failed: {errno.errorcode.get(error.errno or 0, 'unknown')}")
