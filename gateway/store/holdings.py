"""The directory of a quarantine: who has it, which of its files belong together, how much of the disk they take."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway.errors import ConfigError, Overloaded

IDENTITY = re.compile(r"[0-9a-f]{32}")
CASE, SCAN, MAP = "case", "scan", "map"
"""What there is about an object: what is known of it, its bytes, and a picture for people."""

_BLOCK_BYTES = 4096
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def claim(directory: Path) -> int:
    """Create the directory and keep other processes out; returns what to close in the end. Raises `ConfigError`."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError([f"quarantine directory {directory}: {error.strerror}"]) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise ConfigError([f"quarantine directory {directory}: another process has it"]) from None
    return descriptor


def clean(directory: Path) -> set[str]:
    """Ids of what is held; removes parts, and what has no case, which nobody was told was held."""
    ids = {file.stem for file in directory.glob(f"*.{CASE}") if IDENTITY.fullmatch(file.stem)}
    for file in directory.iterdir():
        if file.suffix == ".part" or (file.suffix in {f".{SCAN}", f".{MAP}"} and file.stem not in ids):
            file.unlink()
    return ids


def on_disk(size: int) -> int:
    """What a file of this size takes."""
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


def taken(path: Path) -> int:
    """What a file takes; 0 where there is none."""
    return on_disk(path.stat().st_size) if path.exists() else 0


@contextmanager
def disk() -> Iterator[None]:
    """Whatever the disk refuses is lack of room, and the caller may try again."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise Overloaded("the quarantine's disk is full") from None
        name = errno.errorcode.get(error.errno or 0, "unknown")
        raise Overloaded(f"the quarantine's disk failed: {name}") from None
