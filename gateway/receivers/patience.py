"""Ends calls that have gone on for too long; only that wakes a handler that waits for a silent sender."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_LOOK_S = 0.25


class Cancellable(Protocol):
    """A call that can be ended from outside, such as a gRPC context."""

    def cancel(self) -> object:
        """End it."""


class Patience:
    """One thread that looks at all calls in progress, however many there are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[int, tuple[float, Cancellable]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="call-patience", daemon=True)
        self._thread.start()

    @contextmanager
    def with_call(self, call: Cancellable, seconds: float) -> Iterator[None]:
        """End `call` where it is still in this block after that long."""
        with self._lock:
            self._calls[id(call)] = (time.monotonic() + seconds, call)
        try:
            yield
        finally:
            with self._lock:
                del self._calls[id(call)]

    def wait_for(self, call: Cancellable, seconds: float) -> None:
        """Give a call that is in its block so long from now."""
        with self._lock:
            if id(call) in self._calls:
                self._calls[id(call)] = (time.monotonic() + seconds, call)

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(_LOOK_S):
            now = time.monotonic()
            with self._lock:
                late = [call for until, call in self._calls.values() if until <= now]
            for call in late:
                call.cancel()
