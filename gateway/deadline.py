"""How long a caller still waits; checked between stages, so that no work is done for a caller who has gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point on the monotonic clock, and whether the caller has hung up before it.

    A synchronous gRPC handler runs on after its caller's deadline unless it looks; this is where it looks.
    """

    expires_at: float
    """Seconds on `time.monotonic()`."""
    cancelled: Callable[[], bool] = _never
    """Asked at each check; true once the caller has gone."""

    @classmethod
    def after(cls, seconds: float, cancelled: Callable[[], bool] = _never) -> Deadline:
        """The deadline that many seconds from now."""
        return cls(time.monotonic() + seconds, cancelled)

    def remaining(self) -> float:
        """Seconds left, never below 0; 0 also when the caller has gone."""
        return 0.0 if self.cancelled() else max(0.0, self.expires_at - time.monotonic())

    @property
    def expired(self) -> bool:
        """Whether nobody waits any more."""
        return self.remaining() <= 0.0
