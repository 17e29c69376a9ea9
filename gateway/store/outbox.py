"""Hands on what is in custody, again and again until it is taken: store and forward.

A failure that may pass sends the object to the end of the line and makes everyone wait, longer after each failure in
a row, so that a destination that is down is not hammered and one object that it dislikes does not stop the others. A
failure that will not pass puts the object aside until the next start; it stays on disk, and is counted.
"""

from __future__ import annotations

import random
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from gateway.errors import GatewayError
from gateway.store.custody import Custody, Parcel
from gateway.telemetry.metrics import Metrics

RETRY_S_MIN = 1.0
RETRY_S_MAX = 60.0
"""Between two attempts while nothing succeeds."""

_log = structlog.get_logger(__name__)


class Outbox:
    """A custody, and the threads that hand its objects on; thread-safe.

    An object is handed on at least once: it may be again after a crash between the handing and the note that it is
    done, so whoever takes it must tell the second time from the first.
    """

    def __init__(
        self,
        name: str,
        custody: Custody,
        hand_on: Callable[[Parcel], None],
        *,
        workers: int,
        metrics: Metrics,
        retry_s: tuple[float, float] = (RETRY_S_MIN, RETRY_S_MAX),
    ) -> None:
        """What was in custody already stands first in the line; nothing is handed on before `start`.

        Args:
            name: of the queue in `scanward_queue_depth`; what is put aside is counted as `NAME-aside`.
            custody: closed by `close`.
            hand_on: returns once the object is taken; a `GatewayError` says whether trying again can help.
            workers: objects handed on at once.
            metrics: told how many wait.
            retry_s: seconds between attempts, after the first failure and at most.
        """
        self._name = name
        self._custody = custody
        self._hand_on = hand_on
        self._metrics = metrics
        self._retry_s = retry_s
        self._ready = threading.Condition()
        self._line: deque[str] = deque(custody.waiting())
        self._aside: set[str] = set()
        self._in_hand = 0
        self._failures = 0
        self._stopping = threading.Event()
        self._workers = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(workers)
        ]
        self._tell()

    def start(self) -> None:
        """Begin to hand on."""
        for worker in self._workers:
            worker.start()

    def put(self, data: memoryview, facts: Mapping[str, Any], *, key: str) -> None:
        """Take an object; on disk when this returns. The same key twice while it waits is one object.

        Raises:
            Overloaded: there is no room, or the disk is full or fails.
        """
        identity, new = self._custody.put(data, facts, key=key)
        if new:
            with self._ready:
                self._line.append(identity)
                self._tell()
                self._ready.notify()

    @property
    def depth(self) -> int:
        """Objects that are not handed on yet, those put aside not counted."""
        with self._ready:
            return len(self._line) + self._in_hand

    def close(self, seconds: float) -> None:
        """Take no new object in hand, give those in hand that long, and let go of the custody; the rest waits there."""
        self._stopping.set()
        with self._ready:
            self._ready.notify_all()
            self._ready.wait_for(lambda: not self._in_hand, seconds)
        self._custody.close()

    # -- the workers' threads --

    def _work(self) -> None:
        while (identity := self._next()) is not None:
            outcome = self._attempt(identity)
            with self._ready:
                self._in_hand -= 1
                if outcome is None:
                    self._failures = 0
                elif outcome.permanent:
                    self._aside.add(identity)
                else:
                    self._line.append(identity)
                    self._failures += 1
                pause = self._pause()
                self._tell()
                self._ready.notify_all()
            if outcome is not None and not outcome.permanent:
                self._stopping.wait(pause)

    def _next(self) -> str | None:
        with self._ready:
            self._ready.wait_for(lambda: self._line or self._stopping.is_set())
            if self._stopping.is_set():
                return None
            self._in_hand += 1
            return self._line.popleft()

    def _attempt(self, identity: str) -> GatewayError | None:
        """Hand one object on; returns why not, where it was not taken."""
        try:
            self._hand_on(self._custody.parcel(identity))
        except GatewayError as error:
            _log.warning("not_handed_on", queue=self._name, error=type(error).__name__, permanent=error.permanent)
            return error
        except Exception as error:  # whatever it raised, the object must neither be lost nor stop the line
            _log.exception("hand_on_crashed", queue=self._name, error=type(error).__name__)
            return GatewayError(type(error).__name__)
        self._custody.done(identity)
        return None

    def _pause(self) -> float:
        """Seconds before the next attempt, half of it by chance so that many gateways do not try in step."""
        first, most = self._retry_s
        pause = min(most, first * 2.0 ** min(max(0, self._failures - 1), 32))
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - no secret

    def _tell(self) -> None:
        self._metrics.queue(self._name, len(self._line) + self._in_hand)
        self._metrics.queue(f"{self._name}-aside", len(self._aside))
