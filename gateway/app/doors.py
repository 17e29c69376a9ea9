"""Opens the doors beside gRPC, where they are configured; each is closed by the stack that it is put on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

from gateway.app.assembly import Records
from gateway.app.plan import Plan
from gateway.receivers.dicomweb import StowReceiver
from gateway.receivers.dimse import RECEIVER as DIMSE
from gateway.receivers.dimse import DimseReceiver
from gateway.receivers.gate import Gate
from gateway.receivers.inbox import Inbox
from gateway.receivers.nodes import Nodes
from gateway.service import ProtectionService


def open_dicom_door(
    plan: Callable[[], Plan], records: Records, service: Callable[[], ProtectionService], closing: ExitStack
) -> str | None:
    """Listen for DICOM; what an earlier run left in the inbox is examined first. Returns HOST:PORT."""
    config = plan().config.receivers.dimse
    if config is None or records.inbox is None:
        return None
    inbox = Inbox(
        records.inbox,
        service=service,
        spool=records.spool,
        audit=records.audit,
        metrics=records.metrics,
        examiners=config.examiners,
        examine_s_max=config.examine_s_max,
        unsafe="receivers.dimse.unsafe_plaintext" if config.unsafe_plaintext else None,
    )
    closing.callback(inbox.close, config.examine_s_max)
    receiver = DimseReceiver(
        config,
        nodes=lambda: Nodes.of(plan().config, config.routes),
        inbox=inbox,
        spool=records.spool,
        throttle=records.throttle,
        refuse=lambda error, source: service().refuse(error, receiver=DIMSE, source=source),
    )
    address = receiver.start()
    closing.callback(receiver.drain, config.drain_s_max)
    inbox.start()
    return address


def open_web_door(
    plan: Plan,
    records: Records,
    service: Callable[[], ProtectionService],
    gate: Callable[[], Gate],
    closing: ExitStack,
) -> str | None:
    """Listen for STOW-RS; returns HOST:PORT."""
    config = plan.config.receivers.stow
    if config is None:
        return None
    receiver = StowReceiver(config, service=service, gate=gate, spool=records.spool, throttle=records.throttle)
    closing.callback(receiver.drain, config.drain_s_max)
    return receiver.start()
