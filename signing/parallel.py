"""Verifies many files on all cores, in the order in which they were named, holding only a few verdicts at a time."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from signing.dictionary import keyword
from signing.errors import SigningError
from signing.files import FileVerdict, verify_file
from signing.profiles import profiles
from signing.reasons import Reason
from signing.report import Outcome, checks_not_run
from signing.trust import Trust

_BATCH_FILES, _BATCH_BYTES = 8, 8 * 2**20
_BATCHES_AHEAD = 4
"""For each process: enough that none waits, few enough that memory stays flat however many files there are."""

_shared: tuple[Trust, datetime] | None = None
"""In a verifying process: what it was forked with. Certificates cannot be pickled, and need not be."""


class Verifiers:
    """Processes that verify. Small objects are parsed in Python, which threads of one process would do in turn.

    They are forked, when the block is entered; so enter it before threads are started.
    """

    def __init__(self, trust: Trust, at: datetime, *, processes: int | None = None) -> None:
        """`processes`: as many as this process may use cores, if it is not said; 1 verifies in this process."""
        self._trust, self._at = trust, at
        self._processes = processes if processes is not None else len(os.sched_getaffinity(0))
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._processes > 1:
            profiles(), keyword(0)  # tables that every process would otherwise read for itself
            fork = multiprocessing.get_context("fork")
            state = (self._trust, self._at)
            self._pool = ProcessPoolExecutor(self._processes, fork, initializer=_share, initargs=state)
            self._pool.submit(_stand_by).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def verify(self, paths: Iterable[Path]) -> Iterator[FileVerdict]:
        """One verdict a file, in the order of `paths`; a file that cannot be opened has one too.

        Raises:
            SigningError: a process died, so that nothing can be said of its files.
        """
        if self._pool is None:
            for path in paths:
                yield verdict_on(path, self._trust, self._at)
            return
        pending: deque[Future[list[FileVerdict]]] = deque()
        try:
            for batch in _batches(paths):
                pending.append(self._pool.submit(_verdicts, batch))
                if len(pending) >= _BATCHES_AHEAD * self._processes:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        except BrokenProcessPool as error:
            raise SigningError("a verifying process has died: was a file cut short while it was read?") from error


def verdict_on(path: Path, trust: Trust, at: datetime) -> FileVerdict:
    """The verdict on one file; what cannot be opened is unreadable like what cannot be parsed."""
    try:
        return verify_file(path, trust, at)
    except OSError as error:
        detail = f"cannot be read: {error.strerror or error}"
        return FileVerdict(str(path), Outcome.FAILED, Reason.MALFORMED, detail, checks_not_run(), (), readable=False)


def _batches(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """A few small files together, a large one alone."""
    batch: list[Path] = []
    size = 0
    for path in paths:
        batch.append(path)
        with suppress(OSError):  # it will have its verdict
            size += path.stat().st_size
        if len(batch) >= _BATCH_FILES or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _share(trust: Trust, at: datetime) -> None:
    global _shared  # noqa: PLW0603  the one thing that a forked process is given
    _shared = trust, at


def _stand_by() -> None:
    """The first task, at which all processes are forked."""


def _verdicts(paths: list[Path]) -> list[FileVerdict]:
    assert _shared is not None
    found = (verdict_on(path, *_shared) for path in paths)
    return [replace(verdict, checks=dict(verdict.checks)) for verdict in found]  # a read-only view cannot be pickled
