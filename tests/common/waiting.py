"""Waiting in tests for what another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

_LOOK_S = 0.02


def until(true: Callable[[], object], seconds: float = 120.0) -> None:
    """Return once it is true; so long that only what never comes fails a test."""
    give_up_at = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < give_up_at, "it did not happen"
        time.sleep(_LOOK_S)
