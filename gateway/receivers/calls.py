"""One call of the gRPC port, whatever the service: who makes it, how long it may take, what a failure becomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import NoReturn, TypeVar

import grpc
import structlog
from google.rpc import error_details_pb2, status_pb2

from gateway.callers.throttle import Throttle
from gateway.deadline import Deadline
from gateway.errors import AuditError, GatewayError, Overloaded
from gateway.receivers.gate import Gate
from gateway.receivers.identity import Caller, Credentials
from gateway.receivers.patience import Patience
from gateway.receivers.receiver import ON_RECORD, CutOff, NotPermitted, Refusals
from gateway.receivers.roles import Role
from gateway.receivers.status import status_of
from gateway.scan import ANONYMOUS, Source

_PUSHBACK_S_MAX = 10.0
_STRANGER_S_MAX = 5.0
"""For a call that needs no credentials: an orchestrator's question is one packet."""

PUSHBACK = "grpc-retry-pushback-ms"
"""Trailing metadata by which gRPC's own retry policy waits (gRFC A6)."""

T = TypeVar("T")
_log = structlog.get_logger(__name__)
_admission: ContextVar[Admission] = ContextVar("admission")


def current_caller() -> Caller:
    """Who makes the call that a handler is in, by the configuration of now.

    Asked again where a call goes on for long: a stream that was begun before a reload has no more rights than a new
    one.

    Raises:
        Unauthenticated: a reload has taken the caller out, or a token has run out meanwhile.
        NotPermitted: a reload has taken the role away.
    """
    return _admission.get().caller()


class Admission:
    """The right to make one call, as often as it is asked for."""

    def __init__(self, gate: Callable[[], Gate], shown: Credentials, roles: frozenset[Role] | None) -> None:
        """`roles`: one of them is needed; None where anybody may call."""
        self._gate = gate
        self._shown = shown
        self._roles = roles
        self.source = ANONYMOUS
        """Who calls, as soon as it is known."""

    @property
    def known(self) -> bool:
        """Whether this method is for known callers."""
        return self._roles is not None

    def enter(self) -> Source:
        """Begin the call; raises `Unauthenticated` or `NotPermitted`."""
        _admission.set(self)  # stays for the thread: its next call overwrites it before anything can look
        return self.caller().source if self.known else Source(ANONYMOUS)

    def caller(self) -> Caller:
        """See `current_caller`."""
        if self._roles is None:
            raise NotPermitted("nobody is known where anybody may call")
        found = self._gate().admit(self._shown)
        self.source = found.source.identity
        found.require(self._roles)
        return found


class Calls:
    """Runs the calls of one door."""

    def __init__(
        self,
        receiver: str,
        refuse: Callable[[GatewayError, str], object],
        *,
        call_s_max: float,
        throttle: Throttle,
    ) -> None:
        """`refuse(error, source name)` records a call that was turned away; `call_s_max` bounds every call."""
        self._receiver = receiver
        self._refusals = Refusals(refuse)
        self._patience = Patience()
        self._call_s_max = call_s_max
        self.throttle = throttle

    def run(self, context: grpc.ServicerContext, work: Callable[[Deadline], T], *, seconds: float | None = None) -> T:
        """Do one call's work within its time; what it raises becomes a status in the doorkeeper's hands.

        `seconds`: how long it may take, where that is not as for other calls.
        """
        longest = self._call_s_max
        if seconds is not None:
            longest = seconds
            self._patience.wait_for(context, seconds)
        left = context.time_remaining()
        seconds = longest if left is None else min(left, longest)
        return work(Deadline.after(seconds, lambda: not context.is_active()))

    @contextmanager
    def guarded(self, context: grpc.ServicerContext, admission: Admission) -> Iterator[None]:
        """Let the caller in, for the block; whatever the block raises ends the call with a status."""
        try:
            sender = admission.enter()
            seconds = self._call_s_max if admission.known else min(_STRANGER_S_MAX, self._call_s_max)
            with self.throttle.call(sender), self._patience.with_call(context, seconds):
                yield
        except Exception as error:
            self._end(context, error, admission.source)

    def close(self) -> None:
        """Record what was only counted."""
        self._patience.close()
        with suppress(AuditError):  # the log says so itself
            self._refusals.close()

    def _end(self, context: grpc.ServicerContext, error: Exception, source: str) -> NoReturn:
        """End a call that was not answered: first on record, then the status, telling no more than it should."""
        if context.code() is not None:
            raise error  # the handler has ended the call itself
        told = None
        if isinstance(error, ON_RECORD):
            _log.warning("call_failed", receiver=self._receiver, source=source, error=type(error).__name__)
            if error.retry_after_s is not None:
                context.set_trailing_metadata(_try_again(error, error.retry_after_s))
            context.abort(status_of(error).grpc, str(error))
        if isinstance(error, grpc.RpcError):
            error = CutOff("the call ended before the stream did")
        if isinstance(error, GatewayError):
            _log.info("call_refused", receiver=self._receiver, source=source, error=type(error).__name__)
        else:
            _log.error("call_crashed", receiver=self._receiver, source=source, exc_info=error)
            error, told = GatewayError(f"internal error: {type(error).__name__}"), "internal error"
        try:
            self._refusals.refused(error, source)
        except AuditError as unrecorded:
            error, told = unrecorded, None
        if isinstance(error, Overloaded):
            context.set_trailing_metadata(_try_again(error, error.retry_after_s))
        context.abort(status_of(error).grpc, told or str(error))
        raise AssertionError("abort raises")


def _try_again(error: GatewayError, seconds: float) -> tuple[tuple[str, str | bytes], ...]:
    """When to come back: for people, for gRPC's own retries, and in its richer error model (google.rpc)."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(math.ceil(1000 * seconds))
    status = status_pb2.Status(code=status_of(error).grpc.value[0], message=str(error))
    status.details.add().Pack(info)
    return (
        ("retry-after", str(math.ceil(seconds))),
        # Within a call a client waits a moment; beyond that it should hear the refusal, which a negative number says.
        (PUSHBACK, str(math.ceil(1000 * seconds) if seconds <= _PUSHBACK_S_MAX else -1)),
        ("grpc-status-details-bin", status.SerializeToString()),
    )
