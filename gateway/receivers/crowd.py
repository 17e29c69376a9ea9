"""A listening socket that hangs up on a crowd: who only connects takes no descriptor from those who have work."""

from __future__ import annotations

import socket
from collections import Counter
from typing import Any, Self


class CrowdListener(socket.socket):
    """Hands out so many connections at once, and few to one address before they ask for something.

    For one event loop: `accept`, `known` and the connections' `close` are called from its thread.
    """

    def __init__(self, listener: socket.socket, *, open_max: int, strangers_max: int) -> None:
        """Take over a listening socket; `strangers_max`: of one address, that have asked for nothing yet."""
        super().__init__(fileno=listener.detach())
        self._open_max = open_max
        self._strangers_max = strangers_max
        self._open = 0
        self._strangers: dict[Any, _Guest] = {}
        self._by_address: Counter[str] = Counter()

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection that there is room for; the others are closed. Raises `OSError` where there is none."""
        while True:
            connection, peer = super().accept()
            if self._open >= self._open_max or self._by_address[peer[0]] >= self._strangers_max:
                connection.close()
                continue
            self._open += 1
            self._by_address[peer[0]] += 1
            guest = self._strangers[peer[:2]] = _Guest(fileno=connection.detach()).of(self, peer[:2])
            return guest, peer

    def known(self, peer: tuple[str, int]) -> None:
        """The connection from there has asked for something."""
        if self._strangers.pop(peer, None) is not None:
            self._by_address -= Counter({peer[0]: 1})

    def _left(self, peer: tuple[str, int]) -> None:
        self._open -= 1
        self.known(peer)


class _Guest(socket.socket):
    """One connection, which says when it is closed."""

    _host: CrowdListener | None = None

    def of(self, host: CrowdListener, peer: tuple[str, int]) -> Self:
        self._host, self._peer = host, peer
        return self

    def close(self) -> None:
        super().close()
        host, self._host = self._host, None
        if host is not None:
            host._left(self._peer)
