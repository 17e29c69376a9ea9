"""A scan that cannot be examined: raised inside a stage, turned there into an `indeterminate` finding."""

from __future__ import annotations

from gateway.finding import GatewayReason


class UnexaminableError(Exception):
    """Its pixels cannot be decoded or rendered as its header and the profile say, or (`timeout`) not in time."""

    def __init__(self, reason: GatewayReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        """A sentence for a person; tags, sizes and numbers only, never a header value that names a patient."""
