"""The DICOM Upper Layer on one accepted connection (PS3.8): PDUs in and out, bounded in size and in time.

Association PDUs are read and written by pynetdicom; P-DATA, which carries the scans, goes from the socket to whoever
takes it through one buffer that is as large as the largest PDU, and is never held whole.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pydicom.uid import UID
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RJ, A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
)
from pynetdicom.presentation import PresentationContext

IMPLEMENTATION_CLASS_UID = "2.25.213094763221046932146107219543212745019"
IMPLEMENTATION_VERSION_NAME = "SCANWARD"

_ASSOCIATE_RQ, _P_DATA, _RELEASE_RQ, _ABORT = 0x01, 0x04, 0x05, 0x07
_RELEASE_RP = b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00"
_HEADER = struct.Struct(">BxI")
_PDV = struct.Struct(">IBB")
_REQUEST_BYTES_MAX = 1 << 18
"""Of an A-ASSOCIATE-RQ: 128 presentation contexts with 20 transfer syntaxes each are about 180 KB."""
_SMALL_BYTES_MAX = 4
"""Of an A-RELEASE-RQ and an A-ABORT."""
_UNREAD_BYTES_MAX = 1 << 22
"""Taken from a peer that was hung up on, and thrown away."""
_LOOK_S = 0.5
"""How often a connection on which nothing comes looks whether it should end."""

UNRECOGNISED_PDU, UNEXPECTED_PDU, INVALID_PARAMETER = 1, 2, 6
"""Reasons of an A-ABORT by the service provider (PS3.8 table 9-26)."""


class Rejection(NamedTuple):
    """Result, source and reason of an A-ASSOCIATE-RJ (PS3.8 table 9-21)."""

    result: int
    source: int
    reason: int


CALLING_AE_UNKNOWN = Rejection(1, 1, 3)
CALLED_AE_UNKNOWN = Rejection(1, 1, 7)
LOCAL_LIMIT = Rejection(2, 3, 2)
CONGESTION = Rejection(2, 3, 1)


class Gone(Exception):  # noqa: N818 - a state
    """The connection ended, or is to be ended without another word."""


class ProtocolError(Exception):
    """The peer does not keep to the protocol; `reason` goes into the A-ABORT."""

    def __init__(self, reason: int = INVALID_PARAMETER) -> None:
        super().__init__()
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Request:
    """What the peer asks for when it opens an association."""

    calling_ae: str
    called_ae: str
    pdu_bytes_max: int
    """Largest P-DATA that it takes; 0: any."""
    contexts: tuple[tuple[int, str, tuple[str, ...]], ...]
    """Context id, abstract syntax, transfer syntaxes in its order."""
    _primitive: A_ASSOCIATE


class Fragment(NamedTuple):
    """One presentation data value (PS3.8 9.3.5.1, annex E)."""

    context: int
    command: bool
    last: bool
    data: memoryview
    """Valid until the next fragment is asked for."""


class UpperLayer:
    """One connection, as the side that was called."""

    def __init__(
        self, connection: socket.socket, *, pdu_bytes_max: int, idle_s: float, stopping: Callable[[], bool]
    ) -> None:
        """Take a connected socket.

        Args:
            connection: closed by whoever opened it.
            pdu_bytes_max: largest P-DATA that is taken.
            idle_s: how long nothing may come, and how long one PDU may take.
            stopping: whether the association should end once nothing is in progress.
        """
        self._connection = connection
        self._idle_s = idle_s
        self._stopping = stopping
        self._buffer = memoryview(bytearray(max(pdu_bytes_max, _SMALL_BYTES_MAX)))
        self._peer_bytes_max = 0

    def request(self, seconds: float) -> Request:
        """Read the A-ASSOCIATE-RQ, which must be whole after that long (the ARTIM timer, PS3.8 9.1.4).

        Raises:
            Gone: it did not come.
            ProtocolError: something else came.
        """
        until = time.monotonic() + seconds
        kind, length = self._header(until)
        if kind != _ASSOCIATE_RQ:
            raise ProtocolError(UNEXPECTED_PDU)
        if length > _REQUEST_BYTES_MAX:
            raise ProtocolError
        body = memoryview(bytearray(length))
        self._fill(body, until)
        try:
            pdu = A_ASSOCIATE_RQ()
            pdu.decode(_HEADER.pack(kind, length) + body)
            asked = pdu.to_primitive()
            contexts = tuple(
                (int(each.context_id), str(each.abstract_syntax), tuple(map(str, each.transfer_syntax)))
                for each in asked.presentation_context_definition_list
            )
            found = Request(
                asked.calling_ae_title.strip(),
                asked.called_ae_title.strip(),
                asked.maximum_length_received or 0,
                contexts,
                asked,
            )
        except Exception as error:  # whatever the codec stumbles over, it is the peer's doing
            raise ProtocolError from error
        self._peer_bytes_max = found.pdu_bytes_max
        return found

    def accept(self, request: Request, accepted: Mapping[int, str]) -> None:
        """Send the A-ASSOCIATE-AC; `accepted`: transfer syntax by context id, the others are refused."""
        answer = A_ASSOCIATE()
        answer.application_context_name = UID("1.2.840.10008.3.1.1.1")
        answer.calling_ae_title = request._primitive.calling_ae_title
        answer.called_ae_title = request._primitive.called_ae_title
        answer.result, answer.result_source = 0, 1
        results = []
        for number, abstract, transfer in request.contexts:
            result = PresentationContext()
            result.context_id = number
            result.abstract_syntax = UID(abstract)
            result.transfer_syntax = [UID(accepted.get(number, transfer[0] if transfer else "1.2.840.10008.1.2"))]
            result.result = 0 if number in accepted else 3
            results.append(result)
        answer.presentation_context_definition_results_list = results
        length = MaximumLengthNotification()
        length.maximum_length_received = len(self._buffer)
        implementation = ImplementationClassUIDNotification()
        implementation.implementation_class_uid = UID(IMPLEMENTATION_CLASS_UID)
        version = ImplementationVersionNameNotification()
        version.implementation_version_name = IMPLEMENTATION_VERSION_NAME
        answer.user_information = [length, implementation, version]
        pdu = A_ASSOCIATE_AC()
        pdu.from_primitive(answer)
        self._send(pdu.encode())

    def reject(self, rejection: Rejection) -> None:
        """Send an A-ASSOCIATE-RJ."""
        answer = A_ASSOCIATE()
        answer.result, answer.result_source, answer.diagnostic = rejection
        pdu = A_ASSOCIATE_RJ()
        pdu.from_primitive(answer)
        self._send(pdu.encode())
        self._let_read()

    def fragments(self, *, between_messages: Callable[[], bool]) -> Iterator[Fragment]:
        """What the peer sends until it releases the association, which is answered.

        Raises:
            Gone: the connection ended, nothing came for too long, or the gateway stops and no message has begun.
            ProtocolError: what came is no P-DATA of an agreed size.
        """
        while True:
            kind, length = self._header(None, interruptible=between_messages())
            if kind == _P_DATA:
                if not _PDV.size <= length <= len(self._buffer):
                    raise ProtocolError
                body = self._buffer[:length]
                self._fill(body, time.monotonic() + self._idle_s)
                yield from _values(body)
            elif kind == _RELEASE_RQ and length == _SMALL_BYTES_MAX:
                self._fill(self._buffer[:length], time.monotonic() + self._idle_s)
                self._send(_RELEASE_RP)
                return
            elif kind == _ABORT:
                raise Gone
            else:
                raise ProtocolError(UNEXPECTED_PDU if kind <= _ABORT else UNRECOGNISED_PDU)

    def send_command(self, context: int, command: bytes) -> None:
        """Send a command set, in as many pieces as the peer wants."""
        most = (self._peer_bytes_max or 1 << 14) - _PDV.size
        pieces = [command[at : at + most] for at in range(0, len(command), most)]
        pdus = bytearray()
        for number, piece in enumerate(pieces, 1):
            control = 1 | (2 if number == len(pieces) else 0)
            pdus += _HEADER.pack(_P_DATA, len(piece) + _PDV.size) + _PDV.pack(len(piece) + 2, context, control) + piece
        self._send(pdus)

    def abort(self, reason: int | None = None) -> None:
        """Send an A-ABORT, by the service provider with a reason, else by the service user."""
        by_provider = reason is not None
        self._send(struct.pack(">BxIxxBB", _ABORT, 4, 2 if by_provider else 0, reason or 0))
        self._let_read()

    def _let_read(self) -> None:
        """Give the peer a moment to read and close: what it has sent unread would else reset the connection."""
        left, until = _UNREAD_BYTES_MAX, time.monotonic() + _LOOK_S
        try:
            self._connection.shutdown(socket.SHUT_WR)
            while left > 0 and (wait := until - time.monotonic()) > 0:
                self._connection.settimeout(wait)
                if not (count := self._connection.recv_into(self._buffer)):
                    return
                left -= count
        except OSError:
            return

    def _header(self, until: float | None, *, interruptible: bool = False) -> tuple[int, int]:
        """Kind and length of the next PDU; without `until` its first byte may be as late as the idle time says."""
        first = memoryview(bytearray(_HEADER.size))
        idle_until = time.monotonic() + self._idle_s if until is None else until
        while True:
            left = idle_until - time.monotonic()
            if left <= 0 or (interruptible and self._stopping()):
                raise Gone
            self._connection.settimeout(min(left, _LOOK_S))
            try:
                count = self._connection.recv_into(first)
            except TimeoutError:
                continue
            except OSError:
                raise Gone from None
            if not count:
                raise Gone
            break
        self._fill(first[count:], until or time.monotonic() + self._idle_s)
        kind, length = _HEADER.unpack(first)
        return kind, length

    def _fill(self, view: memoryview, until: float) -> None:
        """Read that many bytes by then; a peer that sends them one by one gains nothing."""
        while view:
            left = until - time.monotonic()
            if left <= 0:
                raise Gone
            self._connection.settimeout(left)
            try:
                count = self._connection.recv_into(view)
            except OSError:  # also the timeout
                raise Gone from None
            if not count:
                raise Gone
            view = view[count:]

    def _send(self, data: bytes | bytearray) -> None:
        self._connection.settimeout(self._idle_s)
        try:
            self._connection.sendall(data)
        except OSError:
            raise Gone from None


def agreed(request: Request, takes: Callable[[str], bool], syntaxes: Iterable[str]) -> dict[int, str]:
    """Transfer syntax by context id, the first of the peer's that we read; contexts with none are left out."""
    readable = frozenset(syntaxes)
    found = {}
    for number, abstract, transfer in request.contexts:
        chosen = next((syntax for syntax in transfer if syntax in readable), None)
        if chosen is not None and takes(abstract):
            found[number] = chosen
    return found


def _values(body: memoryview) -> Iterator[Fragment]:
    while body:
        if len(body) < _PDV.size:
            raise ProtocolError
        length, context, control = _PDV.unpack_from(body)
        if not 2 <= length <= len(body) - 4:
            raise ProtocolError
        yield Fragment(context, bool(control & 1), bool(control & 2), body[_PDV.size : 4 + length])
        body = body[4 + length :]
