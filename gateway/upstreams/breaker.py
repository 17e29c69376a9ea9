"""A circuit breaker: stops calls to what keeps failing, and lets one through now and then to see whether it is back."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from gateway.errors import UpstreamError


class Breaker:
    """Closed: calls pass. Open: none does. Half open, after a pause: one does, and decides. Thread-safe."""

    def __init__(self, *, failures_max: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """`failures_max` in a row open it; `pause_s` is the time until it tries again."""
        self._failures_max = failures_max
        self._pause_s = pause_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._tries_at: float | None = None
        """When it is open: the earliest time of the next probe."""
        self._probing = False

    @property
    def closed(self) -> bool:
        """Whether calls pass."""
        with self._lock:
            return self._tries_at is None

    def begin(self) -> None:
        """Ask to make a call, whose end must be told by one of the three methods below.

        Raises:
            UpstreamError: not now; says when it may be worth asking again.
        """
        with self._lock:
            if self._tries_at is None:
                return
            wait = self._tries_at - self._clock()
            if wait > 0.0 or self._probing:
                raise UpstreamError(
                    "the protected model has failed repeatedly and is left alone for a while",
                    retry_after_s=wait if wait > 0.0 else self._pause_s,
                )
            self._probing = True

    def succeeded(self) -> None:
        """The call was answered: it is back."""
        with self._lock:
            self._failures, self._tries_at, self._probing = 0, None, False

    def failed(self) -> None:
        """The call was not answered, and that is the other side's fault."""
        with self._lock:
            self._failures += 1
            if self._probing or self._failures >= self._failures_max:
                self._tries_at = self._clock() + self._pause_s
            self._probing = False

    def abandoned(self) -> None:
        """The call ended without saying anything about the other side."""
        with self._lock:
            self._probing = False
