"""AuditService on the gRPC port: the log's signed end, its proofs and its records, for those who check it."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from gateway.api.v1 import audit_pb2 as pb
from gateway.api.v1 import audit_pb2_grpc as rpc
from gateway.audit.log import AuditLog
from gateway.audit.proving import newest_checkpoint, page, prove_consistency, prove_inclusion
from gateway.audit.record import Inspected
from gateway.audit.tree import SIZE_MAX
from gateway.errors import ScanError
from gateway.receivers.calls import Calls, current_caller

AUDIT = pb.DESCRIPTOR.services_by_name["AuditService"].full_name
"""Name of the service, for reflection."""


class AuditServicer(rpc.AuditServiceServicer):
    """Converts a call into a question to the log; each call reads the log as it is at that moment."""

    def __init__(self, audit: Callable[[], AuditLog], calls: Calls) -> None:
        self._audit = audit
        self._calls = calls

    def GetCheckpoint(  # noqa: N802
        self, request: pb.GetCheckpointRequest, context: grpc.ServicerContext
    ) -> pb.SignedCheckpoint:
        """The newest signed checkpoint."""
        with self._audit().reader() as log:
            return pb.SignedCheckpoint(note=newest_checkpoint(log)[1])

    def ProveInclusion(  # noqa: N802
        self, request: pb.ProveInclusionRequest, context: grpc.ServicerContext
    ) -> pb.InclusionProof:
        """What proves that one record is in the log."""
        _check(request.index, request.size)
        with self._audit().reader() as log:
            proof = prove_inclusion(log, request.index, request.size)
        return pb.InclusionProof(
            index=request.index,
            size=proof.size,
            record=proof.record,
            path=proof.path,
            checkpoint=pb.SignedCheckpoint(note=proof.note),
        )

    def ProveConsistency(  # noqa: N802
        self, request: pb.ProveConsistencyRequest, context: grpc.ServicerContext
    ) -> pb.ConsistencyProof:
        """What proves that the log only grew."""
        _check(request.old_size, request.new_size)
        with self._audit().reader() as log:
            proof = prove_consistency(log, request.old_size, request.new_size)
        return pb.ConsistencyProof(
            old_size=request.old_size,
            new_size=proof.size,
            path=proof.path,
            checkpoint=pb.SignedCheckpoint(note=proof.note),
        )

    def ReadRecords(  # noqa: N802
        self, request: pb.ReadRecordsRequest, context: grpc.ServicerContext
    ) -> pb.RecordPage:
        """Some records in order; on record before they leave."""
        _check(request.first)
        with self._audit().reader() as log:
            records, size = page(log, request.first, request.records_max), log.size()
        if records:
            source = current_caller().source.identity
            self._audit().append(Inspected(source, records[0][0], len(records))).result()
        return pb.RecordPage(
            records=[pb.Record(index=index, body=body) for index, body in records],
            next=records[-1][0] + 1 if records else request.first,
            size=size,
        )


def _check(*numbers: int) -> None:
    """Such numbers the log cannot have; a database would stumble over larger ones."""
    if max(numbers) > SIZE_MAX:
        raise ScanError("there is no such record")
