"""Who may do what: one table from each method that is served to the roles that may call it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType


class Role(StrEnum):
    """What a caller may do and see; a caller may have several, and none holds another."""

    SUBMIT = "submit"
    """Send scans; sees disposition, coarse reason and receipt: an answer must not be an oracle for an attacker."""
    REVIEW = "review"
    """Look at held scans and decide about them; sees findings, exact reasons and p-values."""
    AUDIT = "audit"
    """Read the log and its proofs; sees what `review` sees."""
    ADMIN = "admin"
    """Load and unload models, and whatever else changes what the gateway does."""


ANYBODY: frozenset[Role] | None = None
"""Without credentials: orchestrators carry none. Such a method must tell nothing that a port scan does not."""
KNOWN = frozenset(Role)
"""Whoever has any role."""
NOBODY: frozenset[Role] = frozenset()
"""What holds for a method without a row: a new service is closed when it comes."""

_SUBMIT = frozenset({Role.SUBMIT})
_INSPECT = frozenset({Role.AUDIT, Role.REVIEW})
_REVIEW = frozenset({Role.REVIEW})

METHODS: Mapping[str, frozenset[Role] | None] = MappingProxyType(
    {
        "/scanward.v1.ProtectionGateway/Protect": _SUBMIT,
        "/scanward.v1.ProtectionGateway/ProtectStream": _SUBMIT,
        "/scanward.v1.ProtectionGateway/ProtectStudy": _SUBMIT,
        "/inference.GRPCInferenceService/ModelInfer": _SUBMIT,
        "/inference.GRPCInferenceService/ModelMetadata": KNOWN,
        "/inference.GRPCInferenceService/ModelReady": KNOWN,
        "/inference.GRPCInferenceService/ServerLive": ANYBODY,
        "/inference.GRPCInferenceService/ServerMetadata": KNOWN,
        "/inference.GRPCInferenceService/ServerReady": ANYBODY,
        "/scanward.v1.AuditService/GetCheckpoint": _INSPECT,
        "/scanward.v1.AuditService/ProveConsistency": _INSPECT,
        "/scanward.v1.AuditService/ProveInclusion": _INSPECT,
        "/scanward.v1.AuditService/ReadRecords": _INSPECT,
        "/scanward.v1.QuarantineService/List": _REVIEW,
        "/scanward.v1.QuarantineService/Show": _REVIEW,
        "/scanward.v1.QuarantineService/Read": _REVIEW,
        "/scanward.v1.QuarantineService/Map": _REVIEW,
        "/scanward.v1.QuarantineService/Release": _REVIEW,
        "/scanward.v1.QuarantineService/Confirm": _REVIEW,
        "/grpc.health.v1.Health/Check": ANYBODY,
        "/grpc.health.v1.Health/List": KNOWN,
        "/grpc.health.v1.Health/Watch": KNOWN,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": KNOWN,
    }
)
"""One row for each method of each service; a caller needs one of the roles in it."""
