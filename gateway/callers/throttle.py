"""What each caller has left of what all share: scans, bytes and holds by the second, calls by the thread.

Every caller has three token buckets. A scan is paid for in advance; bytes and holds are known only afterwards, so they
are paid for then, and a caller in debt waits until time has paid.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from gateway.errors import Overloaded
from gateway.scan import ANONYMOUS, Source
from gateway.settings.coherence import DEFAULT
from gateway.settings.limits import LimitsConfig

_CALLERS_MAX = 4096
"""Accounts kept; the one that was used longest ago goes first, and comes back full."""
_STRANGERS_SHARE = 0.125
"""Of the handler threads, for calls that need no credentials."""
_SECONDS_AN_HOUR = 3600.0


@dataclass(slots=True)
class Bucket:
    """Tokens that come back with time, to a limit; may be overdrawn."""

    rate: float
    """Tokens a second."""
    burst: float
    at: float
    """Seconds on the monotonic clock, when `level` was right."""
    level: float = math.nan

    def __post_init__(self) -> None:
        self.level = self.burst

    def wait_for(self, tokens: float, now: float) -> float:
        """Seconds until that many are there; 0 where they are."""
        self.level = min(self.burst, self.level + max(0.0, now - self.at) * self.rate)
        self.at = now
        return max(0.0, (tokens - self.level) / self.rate)

    def take(self, tokens: float, now: float) -> None:
        """Take them, whether they are there or not."""
        self.wait_for(0.0, now)
        self.level -= tokens

    def changed(self, rate: float, burst: float, now: float) -> None:
        """Go on with another rate; what was used stays used."""
        self.wait_for(0.0, now)
        self.level = min(burst, self.level + max(0.0, burst - self.burst))
        self.rate, self.burst = rate, burst


@dataclass(slots=True)
class _Account:
    limits: LimitsConfig
    scans: Bucket
    bytes: Bucket
    holds: Bucket
    calls: int = 0

    @classmethod
    def opened(cls, limits: LimitsConfig, now: float) -> _Account:
        scans, size, holds = (Bucket(rate, burst, now) for rate, burst in _rates(limits))
        return cls(limits, scans, size, holds)


class Throttle:
    """The accounts of all callers, for all doors; thread-safe, and outlives a reload."""

    def __init__(
        self, limits: Mapping[str, LimitsConfig], *, threads: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`limits` by source, with those of all others under `DEFAULT`; `threads`: of the handlers, all together."""
        self._limits = dict(limits)
        self._threads = threads
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: OrderedDict[str, _Account] = OrderedDict()

    def configure(self, limits: Mapping[str, LimitsConfig]) -> None:
        """Go by other limits from now on."""
        with self._lock:
            self._limits = dict(limits)

    def limits_of(self, source: Source) -> LimitsConfig:
        """The source's own limits, else those of all."""
        return self._limits.get(source.name, self._limits[DEFAULT])

    def admit(self, source: Source) -> None:
        """Raises `Overloaded` where the caller has to wait before it sends a scan; takes nothing."""
        with self._lock:
            self._require(self._account(source), self._clock())

    def scan(self, source: Source, size: int) -> None:
        """Take one scan of `size` bytes from the caller's account; raises `Overloaded` where it has to wait."""
        with self._lock:
            account, now = self._account(source), self._clock()
            self._require(account, now)
            account.scans.take(1, now)
            account.bytes.take(size, now)

    def wasted(self, source: Source, size: int) -> None:
        """Take bytes from the caller's account that were read from it and became no scan."""
        with self._lock:
            self._account(source).bytes.take(size, self._clock())

    def held(self, source: Source) -> None:
        """One of the caller's scans was held."""
        with self._lock:
            self._account(source).holds.take(1, self._clock())

    @contextmanager
    def call(self, source: Source) -> Iterator[None]:
        """Occupy one handler thread; raises `Overloaded` where the caller has its share of them already."""
        with self._lock:
            account = self._account(source)
            if account.calls >= self._calls_max(source, account.limits):
                raise Overloaded(f"{account.calls} calls of this caller are in progress already")
            account.calls += 1
        try:
            yield
        finally:
            with self._lock:
                account.calls -= 1

    def _calls_max(self, source: Source, limits: LimitsConfig) -> int:
        if source.name == ANONYMOUS:
            return max(2, int(self._threads * _STRANGERS_SHARE))
        return max(1, int(self._threads * limits.calls_share))

    def _require(self, account: _Account, now: float) -> None:
        # Of bytes and holds nothing is taken here; whoever has less than nothing waits.
        for what, bucket, needed in (
            ("scans", account.scans, 1.0),
            ("bytes", account.bytes, 0.0),
            ("held scans", account.holds, 0.0),
        ):
            if wait := bucket.wait_for(needed, now):
                raise Overloaded(f"too many {what} from this caller", retry_after_s=wait)

    def _account(self, source: Source) -> _Account:
        limits = self.limits_of(source)
        account = self._accounts.get(source.identity)
        if account is None:
            self._make_room()
            account = self._accounts[source.identity] = _Account.opened(limits, self._clock())
        elif account.limits != limits:
            buckets = (account.scans, account.bytes, account.holds)
            for bucket, (rate, burst) in zip(buckets, _rates(limits), strict=True):
                bucket.changed(rate, burst, self._clock())
            account.limits = limits
        self._accounts.move_to_end(source.identity)
        return account

    def _make_room(self) -> None:
        if len(self._accounts) < _CALLERS_MAX:
            return
        idle = next((name for name, account in self._accounts.items() if not account.calls), None)
        if idle is None:
            raise Overloaded(f"{_CALLERS_MAX} callers are served at once")
        del self._accounts[idle]


def _rates(limits: LimitsConfig) -> tuple[tuple[float, float], ...]:
    """(tokens a second, burst) of scans, bytes and holds."""
    return (
        (limits.scans_per_s, limits.scans_burst),
        (limits.bytes_per_s, limits.bytes_burst),
        (limits.holds_per_hour / _SECONDS_AN_HOUR, limits.holds_burst),
    )
