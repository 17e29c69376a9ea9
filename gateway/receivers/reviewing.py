"""QuarantineService on the gRPC port: what is held, for reviewers, of their own routes only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import grpc

from gateway.api.v1 import quarantine_pb2 as pb
from gateway.api.v1 import quarantine_pb2_grpc as rpc
from gateway.errors import NotHeld, ScanError
from gateway.receivers.calls import Calls, current_caller
from gateway.receivers.wire import finding_to_wire, to_wire
from gateway.review import Person
from gateway.service import ProtectionService
from gateway.store.held import Held, State

QUARANTINE = pb.DESCRIPTOR.services_by_name["QuarantineService"].full_name
"""Name of the service, for reflection."""
_PIECE_BYTES = 1 << 20


class QuarantineServicer(rpc.QuarantineServiceServicer):
    """Converts a reviewer's call into an act on a held scan; a scan of another's route does not exist for him."""

    def __init__(self, service: Callable[[], ProtectionService], calls: Calls) -> None:
        """`service` is asked for at each call, so that a reload reaches the next call whole."""
        self._service = service
        self._calls = calls

    def List(  # noqa: N802
        self, request: pb.ListHeldRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.HeldScan]:
        """What the caller may decide about, in order of id."""
        if request.state and request.state not in set(State):
            raise ScanError(f"state must be one of {', '.join(State)}, or empty")
        routes = current_caller().routes
        for held in self._service().review.list():
            if held.route in routes and request.state in {"", held.state}:
                yield held_to_wire(held)

    def Show(self, request: pb.HeldRequest, context: grpc.ServicerContext) -> pb.HeldScan:  # noqa: N802
        """What is known about one scan."""
        return held_to_wire(self._own(request.id))

    def Read(self, request: pb.HeldRequest, context: grpc.ServicerContext) -> Iterator[pb.HeldBytes]:  # noqa: N802
        """The bytes of one scan."""
        held = self._own(request.id)
        for data in self._service().review.read(held.id, current_caller().source.identity):
            yield pb.HeldBytes(data=data)

    def Map(self, request: pb.HeldRequest, context: grpc.ServicerContext) -> Iterator[pb.HeldBytes]:  # noqa: N802
        """Where the detectors disagreed about one scan, as a picture."""
        held = self._own(request.id)
        read = self._service().heat_maps.read
        picture = self._calls.run(context, partial(read, held.id, current_caller().source.identity))
        for start in range(0, len(picture), _PIECE_BYTES):
            yield pb.HeldBytes(data=picture[start : start + _PIECE_BYTES])

    def Release(self, request: pb.DecideRequest, context: grpc.ServicerContext) -> pb.HeldScan:  # noqa: N802
        """Let a scan go on to its model."""
        held = self._own(request.id)
        release = self._service().release
        return held_to_wire(self._calls.run(context, partial(release, held.id, _person(request))))

    def Confirm(self, request: pb.DecideRequest, context: grpc.ServicerContext) -> pb.HeldScan:  # noqa: N802
        """Say that a scan stays out."""
        held = self._own(request.id)
        return held_to_wire(self._service().review.confirm(held.id, _person(request)))

    def _own(self, identity: str) -> Held:
        """The scan, where it is of a route of the caller's; the same error whether it is another's or nobody's."""
        held = self._service().review.show(identity)
        if held.route not in current_caller().routes:
            raise NotHeld
        return held


def held_to_wire(held: Held) -> pb.HeldScan:
    """All that is known about a held scan but its bytes; for reviewers."""
    return pb.HeldScan(
        id=held.id,
        state=held.state,
        scan_sha256=held.scan_sha256,
        bytes=held.bytes,
        modality=held.modality,
        route=held.route,
        receiver=held.receiver,
        source=held.source.name,
        since=held.since,
        examinations=[
            pb.HeldExamination(
                received_at=examination.received_at,
                reasons=examination.verdict.reasons,
                findings=[finding_to_wire(finding) for finding in examination.findings],
            )
            for examination in held.examinations
        ],
        acts=[pb.ReviewAct(by=act.by, reason=act.reason, at=act.at) for act in held.acts],
        reply=None if held.reply is None else to_wire(held.reply, findings=True),
    )


def _person(request: pb.DecideRequest) -> Person:
    return Person(current_caller().source.identity, request.reason)
