"""What is done with the log of a running gateway beside writing it, as the configuration says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gateway.audit.log import AuditLog
from gateway.audit.retention import Retention
from gateway.settings.audit import AuditConfig


@contextmanager
def tending(config: AuditConfig, keys: Sequence[Ed25519PublicKey], log: AuditLog) -> Iterator[None]:
    """For the block, prune what the log has kept for long enough; `keys`: public checkpoint keys, retired ones too."""
    with ExitStack() as closing:
        if config.retention_days_max is not None:
            closing.enter_context(Retention(log, keys, days_max=config.retention_days_max))
        yield
