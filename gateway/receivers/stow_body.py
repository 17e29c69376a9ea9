"""The body of a STOW-RS request as it comes: what is read of it for nothing is paid for, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gateway.callers.throttle import Throttle
from gateway.errors import ScanError, TooLarge
from gateway.receivers.multipart import Aside, Begin, Data, End, Multipart
from gateway.receivers.receiver import CutOff
from gateway.scan import Source

ASIDE_BYTES_MAX = 8192
"""Of one body, outside of its parts: what is written there is for readers that know no multipart."""

Receive = Callable[[], Awaitable[dict[str, Any]]]


@dataclass(slots=True)
class Waste:
    """What is read of one body and thrown away."""

    throttle: Throttle
    source: Source
    bytes_left: int
    """That parts which are not kept may still have."""
    aside_left: int = ASIDE_BYTES_MAX

    def pay(self, count: int) -> None:
        """Pay for bytes that were read already."""
        self.throttle.wasted(self.source, count)

    def take(self, count: int) -> None:
        """Pay for bytes of a part that is not kept; raises `TooLarge` where they are too many for one request."""
        self.pay(count)
        self.bytes_left -= count
        if self.bytes_left < 0:
            raise TooLarge("too many bytes of the body are of parts that cannot be taken")

    def take_aside(self, count: int) -> bool:
        """Pay for bytes outside of the parts; returns whether more of them will be read."""
        self.pay(count)
        self.aside_left -= count
        return self.aside_left >= 0


async def events(receive: Receive, idle_s: float, parts: Multipart, waste: Waste) -> AsyncIterator[Begin | Data | End]:
    """The parts of the body in pieces, as they come.

    Raises:
        CutOff: the sender went away or said nothing for `idle_s` seconds.
        ScanError: a part's header has no end, or there is too much before the first part. What follows the last is
            not read to its end: the parts have been taken.
    """
    async for data in _pieces(receive, idle_s):
        for event in parts.feed(data):
            if not isinstance(event, Aside):
                yield event
            elif not waste.take_aside(event.count):
                if parts.whole:
                    return
                raise ScanError(f"more than {ASIDE_BYTES_MAX} bytes before the first part")


async def _pieces(receive: Receive, idle_s: float) -> AsyncIterator[bytes]:
    while True:
        try:
            message = await asyncio.wait_for(receive(), idle_s)
        except TimeoutError:
            raise CutOff("the sender said nothing for too long") from None
        if message["type"] != "http.request":
            raise CutOff("the sender went away")
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return
