"""Verifies files and folders, and says of each what `scanward verify --json` prints."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from signing.elements import Limits, read
from signing.errors import DicomError, SignatureError
from signing.reasons import Reason
from signing.report import Outcome, SignatureReport, checks_not_run
from signing.trust import Trust
from signing.verify import verify

_MAPPED_FROM = 16 * 2**20  # below, a copy is as fast, and immune to the file changing meanwhile


@dataclass(frozen=True, slots=True)
class FileVerdict:
    """What was found about one file."""

    path: str
    verdict: Outcome
    reason: Reason
    detail: str
    checks: Mapping[str, str]
    signatures: tuple[SignatureReport, ...]
    readable: bool
    """A DICOM object, whatever its signatures are worth."""

    def as_json(self) -> dict[str, Any]:
        """The entry under `files`."""
        return {
            "path": self.path,
            "verdict": str(self.verdict),
            "reason": str(self.reason),
            "detail": self.detail,
            "checks": dict(self.checks),
            "signatures": [signature.as_json() for signature in self.signatures],
        }


def verify_file(path: str | Path, trust: Trust, at: datetime) -> FileVerdict:
    """Verify one file as at a given time.

    Raises:
        OSError: it cannot be opened or read.
    """
    with open_bytes(path) as data:
        try:
            found = verify(read(data), trust, at=at)
        except SignatureError as error:
            verdict = Outcome.INDETERMINATE if error.indeterminate else Outcome.FAILED
            detail, signatures = error.detail, error.signatures
            return FileVerdict(str(path), verdict, error.reason, detail, error.checks, signatures, readable=True)
        except DicomError as error:
            checks = checks_not_run()
            return FileVerdict(str(path), Outcome.FAILED, error.reason, error.detail, checks, (), readable=False)
        return FileVerdict(str(path), Outcome.PASSED, Reason.OK, "", found.checks, found.signatures, readable=True)


def verify_paths(paths: Iterable[str | Path], trust: Trust, at: datetime) -> Iterator[FileVerdict]:
    """Verify files, and every file in folders, in the order of their names.

    A file of a folder that is no DICOM file is reported like any other: nothing is passed over.

    Raises:
        OSError: a path does not exist, or cannot be read.
    """
    for path in expand(paths):
        yield verify_file(path, trust, at)


def expand(paths: Iterable[str | Path]) -> Iterator[Path]:
    """The files that `paths` name, folders searched through; links to folders are not followed."""
    for path in map(Path, paths):
        if not path.is_dir():
            yield path
            continue
        for folder, folders, names in os.walk(path):
            folders.sort()
            for name in sorted(names):
                file = Path(folder, name)
                if file.is_file():
                    yield file


class open_bytes:  # noqa: N801  used like open()
    """The bytes of a regular file as a read-only view; a large file is mapped, not read."""

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._view: memoryview | None = None

    def __enter__(self) -> memoryview:
        with open(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise OSError(f"{self._path}: not a regular file")
            if found.st_size > Limits().bytes_max or found.st_size >= _MAPPED_FROM:
                self._view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            else:
                self._view = memoryview(file.read())
        return self._view

    def __exit__(self, *_: object) -> None:
        self._view = None  # the mapping goes with its last view
