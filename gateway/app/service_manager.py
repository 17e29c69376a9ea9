"""Tells a service manager such as systemd how far the gateway is (sd_notify(3)); silent where there is none."""

from __future__ import annotations

import os
import socket

READY, STOPPING = "READY=1", "STOPPING=1"


def notify(state: str) -> None:
    """Send one state to the socket that `NOTIFY_SOCKET` names; an at sign in front means the abstract namespace.

    Nobody may be kept from serving by a manager that has gone, so what cannot be sent is let go.
    """
    name = os.environ.get("NOTIFY_SOCKET", "")
    if not name.startswith(("/", "@")):
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
            to.setblocking(False)
            to.sendto(state.encode("ascii"), address)
    except OSError:
        return
