"""One association after it was accepted: C-ECHO is answered, C-STORE stored, and nothing else is understood."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from gateway.errors import AuditError, GatewayError, Overloaded, TooLarge
from gateway.receivers.commands import C_CANCEL_RQ, C_ECHO_RQ, C_STORE_RQ, COMMAND_BYTES_MAX, Command, CommandError
from gateway.receivers.identity import Credentials
from gateway.receivers.part10 import file_meta
from gateway.receivers.status import status_of
from gateway.receivers.upper_layer import Fragment, ProtocolError, Request, UpperLayer
from gateway.scan import Source
from gateway.store.spool import SpoolWriter

_SUCCESS, _SOP_CLASS_NOT_SUPPORTED, _UNRECOGNISED_OPERATION = 0x0000, 0x0122, 0x0211


class Keeper(Protocol):
    """Where objects go, and where those that are not taken are put on record."""

    def open_spool(self, source: Source) -> SpoolWriter:
        """A writer for one object of this source; raises `Overloaded` where there is no room."""

    @property
    def object_bytes_max(self) -> int:
        """Of one object; more of it is not even thrown away."""

    def take(self, writer: SpoolWriter, *, route: str, source: Source, shown: Credentials) -> None:
        """Take a whole object into custody; raises `GatewayError` where it is not taken."""

    def refused(self, error: GatewayError, source: Source) -> None:
        """Put a refused object on record; raises `AuditError` where that cannot be done."""


class Association:
    """Message after message, until the peer releases."""

    def __init__(
        self,
        layer: UpperLayer,
        request: Request,
        accepted: dict[int, str],
        keeper: Keeper,
        route: str,
        source: Source,
        shown: Credentials,
    ) -> None:
        """`shown`: what the peer brought to show that it is `source`."""
        self._layer = layer
        self._abstract = {number: abstract for number, abstract, _ in request.contexts}
        self._accepted = accepted
        self._keeper = keeper
        self._route = route
        self._source = source
        self._shown = shown
        self._in_message = False

    def run(self) -> None:
        """Answer what comes until the peer releases, or the connection ends."""
        fragments = self._layer.fragments(between_messages=lambda: not self._in_message)
        while (first := next(fragments, None)) is not None:
            self._in_message = True
            command = self._command(first, fragments)
            context = first.context
            if command.field == C_ECHO_RQ and not command.has_data_set:
                status, comment = _SUCCESS, ""
            elif command.field == C_STORE_RQ and command.has_data_set:
                status, comment = self._store(context, command, fragments)
            elif command.field == C_CANCEL_RQ:
                self._in_message = False
                continue
            else:
                if command.has_data_set:
                    self._discard(context, fragments)
                status, comment = _UNRECOGNISED_OPERATION, ""
            self._layer.send_command(context, command.response(status, comment))
            self._in_message = False

    def _command(self, fragment: Fragment, fragments: Iterator[Fragment]) -> Command:
        context, whole = fragment.context, bytearray(fragment.data)
        if context not in self._accepted:
            raise ProtocolError
        while not fragment.last:
            fragment = _following(fragments, context)
            whole += fragment.data
            if len(whole) > COMMAND_BYTES_MAX:
                raise ProtocolError
            if not fragment.command:
                raise ProtocolError
        if not fragment.command:
            raise ProtocolError
        try:
            return Command.read(whole)
        except CommandError:
            raise ProtocolError from None

    def _store(self, context: int, command: Command, fragments: Iterator[Fragment]) -> tuple[int, str]:
        """Take one object; returns the status of the response (PS3.4 B.2.3) and a sentence."""
        if command.sop_class != self._abstract[context] or not command.sop_instance:
            self._discard(context, fragments)
            return _SOP_CLASS_NOT_SUPPORTED, ""
        error: GatewayError | None = None
        with self._keeper.open_spool(self._source) as writer:
            try:
                writer.write(file_meta(command.sop_class, command.sop_instance, self._accepted[context]))
                last = False
                while not last:
                    fragment = _following(fragments, context, command=False)
                    last = fragment.last
                    writer.write(fragment.data)
            except (TooLarge, Overloaded) as full:
                error = full
                writer.discard()
                if not last:
                    self._discard(context, fragments)
            else:
                try:
                    self._keeper.take(writer, route=self._route, source=self._source, shown=self._shown)
                except GatewayError as refusal:
                    error = refusal
        if error is None:
            return _SUCCESS, ""
        try:
            self._keeper.refused(error, self._source)
        except AuditError as unrecorded:
            error = unrecorded
        return status_of(error).dimse, str(error)

    def _discard(self, context: int, fragments: Iterator[Fragment]) -> None:
        """Read a data set to its end without keeping it, so that the response can be sent; bounded like one kept."""
        left = self._keeper.object_bytes_max
        while not (fragment := _following(fragments, context, command=False)).last:
            left -= len(fragment.data)
            if left < 0:
                raise ProtocolError


def _following(fragments: Iterator[Fragment], context: int, *, command: bool = True) -> Fragment:
    """The next fragment of the same message."""
    fragment = next(fragments, None)
    if fragment is None or fragment.context != context or fragment.command != command:
        raise ProtocolError
    return fragment
