"""The one table from verdicts and errors to the statuses of gRPC, HTTP and DIMSE, so that no two doors disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import grpc

from gateway.errors import (
    Abandoned,
    AuditError,
    ConfigError,
    GatewayError,
    NotHeld,
    NotTaken,
    Overloaded,
    ScanError,
    Settled,
    TooLarge,
    Unkept,
    UpstreamError,
)
from gateway.receivers.receiver import CutOff, Mismatched, NotPermitted, Unauthenticated
from gateway.verdict import Disposition


@dataclass(frozen=True, slots=True)
class Status:
    """One outcome in the words of each protocol."""

    grpc: grpc.StatusCode
    http: int
    """RFC 9110; for STOW-RS the status of the instance (PS3.18 10.5.3)."""
    dimse: int
    """C-STORE response status: PS3.4 B.2.3 (A7xx, Cxxx), PS3.7 annex C (0110, 0124)."""
    inference: grpc.StatusCode | None = None
    """Of a call that asks for a prediction (KServe v2), where it is not `grpc`."""


_SUCCESS = 0x0000
_PROCESSING_FAILURE = 0x0110
_NOT_AUTHORISED = 0x0124
_OUT_OF_RESOURCES = 0xA700
_DOES_NOT_MATCH = 0xA900
_CANNOT_UNDERSTAND = 0xC000
_REFUSED_BY_POLICY = 0xC001
"""Of Cxxx the standard leaves the low digits to the implementation; this one is in our conformance statement."""

# A held scan is a success on every door: it is durable, and many senders drop the rest of the study when one
# instance is refused. A rejected scan is kept nowhere, so no door may call it stored; `Protect` alone answers OK,
# because there the question was "what is your verdict", and it was answered. Where a prediction was
# asked for, none is given.
VERDICTS: Mapping[Disposition, Status] = MappingProxyType(
    {
        Disposition.ADMIT: Status(grpc.StatusCode.OK, 200, _SUCCESS),
        Disposition.ADMIT_DENOISED: Status(grpc.StatusCode.OK, 200, _SUCCESS),
        Disposition.QUARANTINE: Status(grpc.StatusCode.OK, 202, _SUCCESS, grpc.StatusCode.FAILED_PRECONDITION),
        Disposition.REJECT: Status(grpc.StatusCode.OK, 409, _REFUSED_BY_POLICY, grpc.StatusCode.FAILED_PRECONDITION),
    }
)

ERRORS: Mapping[type[Exception], Status] = MappingProxyType(
    {
        Unauthenticated: Status(grpc.StatusCode.UNAUTHENTICATED, 401, _NOT_AUTHORISED),
        NotPermitted: Status(grpc.StatusCode.PERMISSION_DENIED, 403, _NOT_AUTHORISED),
        CutOff: Status(grpc.StatusCode.ABORTED, 400, _PROCESSING_FAILURE),
        TooLarge: Status(grpc.StatusCode.INVALID_ARGUMENT, 413, _OUT_OF_RESOURCES),
        Mismatched: Status(grpc.StatusCode.INVALID_ARGUMENT, 409, _DOES_NOT_MATCH),
        ScanError: Status(grpc.StatusCode.INVALID_ARGUMENT, 400, _CANNOT_UNDERSTAND),
        Abandoned: Status(grpc.StatusCode.DEADLINE_EXCEEDED, 504, _OUT_OF_RESOURCES),
        NotHeld: Status(grpc.StatusCode.NOT_FOUND, 404, _CANNOT_UNDERSTAND),
        Settled: Status(grpc.StatusCode.FAILED_PRECONDITION, 409, _CANNOT_UNDERSTAND),
        Unkept: Status(grpc.StatusCode.RESOURCE_EXHAUSTED, 503, _OUT_OF_RESOURCES),
        Overloaded: Status(grpc.StatusCode.RESOURCE_EXHAUSTED, 503, _OUT_OF_RESOURCES),
        NotTaken: Status(grpc.StatusCode.UNAVAILABLE, 502, _PROCESSING_FAILURE),
        UpstreamError: Status(grpc.StatusCode.UNAVAILABLE, 502, _PROCESSING_FAILURE),
        AuditError: Status(grpc.StatusCode.UNAVAILABLE, 503, _OUT_OF_RESOURCES),
        ConfigError: Status(grpc.StatusCode.FAILED_PRECONDITION, 500, _PROCESSING_FAILURE),
        GatewayError: Status(grpc.StatusCode.INTERNAL, 500, _PROCESSING_FAILURE),
        Exception: Status(grpc.StatusCode.INTERNAL, 500, _PROCESSING_FAILURE),
    }
)


def status_of(error: Exception) -> Status:
    """The row of the error's own type, else of the nearest type it descends from."""
    return next(ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS)
