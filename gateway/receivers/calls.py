"""One call of the gRPC port, whatever the service: who makes it, how long it may take, what a failure becomes."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import NoReturn, TypeVar

import grpc
import structlog

from gateway.deadline import Deadline
from gateway.errors import AuditError, GatewayError, UpstreamError
from gateway.receivers.receiver import Caller, Refusals
from gateway.receivers.status import status_of

CALLER: ContextVar[Caller] = ContextVar("caller")
"""Who makes the call that a handler is in; set by the interceptor, before any handler runs."""

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Calls:
    """Runs the calls of one door."""

    def __init__(self, receiver: str, refuse: Callable[[GatewayError, str], object], *, call_s_max: float) -> None:
        """`refuse(error, source name)` records a call that was turned away; `call_s_max` bounds every deadline."""
        self._receiver = receiver
        self._refusals = Refusals(refuse)
        self._call_s_max = call_s_max

    def run(self, context: grpc.ServicerContext, work: Callable[[Deadline], T]) -> T:
        """Do one call's work; whatever it raises becomes a status that tells the sender no more than it should know."""
        source = CALLER.get().source.name
        left = context.time_remaining()
        seconds = self._call_s_max if left is None else min(left, self._call_s_max)
        try:
            return work(Deadline.after(seconds, lambda: not context.is_active()))
        except (UpstreamError, AuditError) as error:  # the first is on record already, the second cannot be
            _log.warning("call_failed", receiver=self._receiver, source=source, error=type(error).__name__)
            context.abort(status_of(error).grpc, str(error))
            raise AssertionError("abort raises") from error
        except GatewayError as error:
            self.turn_away(context, error, source)
        except Exception as error:
            _log.exception("call_crashed", receiver=self._receiver, source=source)
            crash = GatewayError(f"internal error: {type(error).__name__}")
            self.turn_away(context, crash, source, told="internal error")

    def turn_away(
        self, context: grpc.ServicerContext, error: GatewayError, source: str, *, told: str | None = None
    ) -> NoReturn:
        """End a call that could not be examined: first on record, then the status.

        `told` is the sentence for the caller where it is not the error's own.
        """
        _log.info("call_refused", receiver=self._receiver, source=source, error=type(error).__name__)
        try:
            self._refusals.refused(error, source)
        except AuditError as unrecorded:
            error, told = unrecorded, None
        context.abort(status_of(error).grpc, told or str(error))
        raise AssertionError("abort raises")
