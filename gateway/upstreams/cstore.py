"""C-STORE to another AE (PS3.4 B, as SCU): the data set goes out byte for byte as it lies in the file."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from contextlib import suppress
from typing import IO

from pydicom.uid import UID
from pynetdicom import AE, Association, _config
from pynetdicom.presentation import build_context

from gateway.errors import NotTaken, UpstreamError
from gateway.settings.destinations import DestinationConfig
from signing.filemeta import (
    MEDIA_STORAGE_SOP_CLASS_UID,
    TRANSFER_SYNTAX_UID,
    read_file_meta,
)

_CONTEXTS_MAX = 128
_META_BYTES_MAX = 1 << 17
_WARNING = 0xB000
_SOP_CLASS_NOT_SUPPORTED, _DOES_NOT_MATCH, _CANNOT_UNDERSTAND = 0x0122, 0xA900, 0xC000

logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)  # a line for each step of each association
_config.STORE_SEND_CHUNKED_DATASET = True  # pynetdicom's way to send a file's data set without decoding it


class StoreSender:
    """One association for each thread that sends, kept for as long as the destination likes."""

    def __init__(self, config: DestinationConfig, tls: ssl.SSLContext | None) -> None:
        """`config` names an AE."""
        assert config.address is not None
        assert config.ae_title is not None
        host, _, port = config.address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._called = config.ae_title
        self._calling = config.calling_ae
        self._seconds = config.attempt_s_max
        self._tls = tls
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: set[Association] = set()

    def send(self, file: IO[bytes]) -> None:
        """See `dicom.Sender.send`."""
        meta, _ = read_file_meta(memoryview(os.pread(file.fileno(), _META_BYTES_MAX, 0)))
        context = (meta.values[MEDIA_STORAGE_SOP_CLASS_UID].decode(), meta.values[TRANSFER_SYNTAX_UID].decode())
        association = self._association(context)
        if not any(
            (str(each.abstract_syntax), str(each.transfer_syntax[0])) == context
            for each in association.accepted_contexts
        ):
            raise NotTaken("the destination takes no such object: SOP class or transfer syntax")
        try:
            # pynetdicom sends from a path, and a file without a name has this one, for us alone.
            status = association.send_c_store(f"/proc/self/fd/{file.fileno()}")
        except (RuntimeError, ValueError, OSError, AttributeError) as error:
            self._drop(association)
            raise UpstreamError(f"the association ended with {type(error).__name__}") from None
        if "Status" not in status:
            self._drop(association)
            raise UpstreamError("the destination did not answer")
        _judge(int(status.Status))

    def close(self) -> None:
        """Abort what is open; those who wait for an answer hear that there is none."""
        with self._lock:
            associations = list(self._open)
        for association in associations:
            self._drop(association)

    def _association(self, context: tuple[str, str]) -> Association:
        """This thread's association, with a presentation context for the object if the destination takes it."""
        found: Association | None = getattr(self._local, "association", None)
        asked: list[tuple[str, str]] = getattr(self._local, "asked", [])
        if found is not None and found.is_established and context in asked:
            return found
        if found is not None:
            self._drop(found)
        asked = [context, *(each for each in asked if each != context)][:_CONTEXTS_MAX]
        self._local.asked = asked
        self._local.association = self._opened(asked)
        return self._local.association

    def _opened(self, contexts: list[tuple[str, str]]) -> Association:
        entity = AE(ae_title=self._calling)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = self._seconds
        entity.requested_contexts = [build_context(UID(abstract), UID(transfer)) for abstract, transfer in contexts]
        tls = None if self._tls is None else (self._tls, self._host)
        association = entity.associate(self._host, self._port, ae_title=self._called, tls_args=tls)
        if association.is_established:
            with self._lock:
                self._open.add(association)
            return association
        if association.is_rejected:
            raise UpstreamError("the destination refuses the association")
        if association.acceptor.primitive is not None:  # accepted, with no context in common, and aborted by us
            raise NotTaken("the destination takes no such object: SOP class or transfer syntax")
        raise UpstreamError("the destination is not reached")

    def _drop(self, association: Association) -> None:
        self._local.association = None
        with self._lock:
            self._open.discard(association)
        with suppress(Exception):  # whatever state it is in
            association.abort()


def _judge(status: int) -> None:
    """Success and warnings are taken (PS3.4 B.2.3); of failures, some will not pass."""
    kind = status & 0xF000
    if status == 0 or kind == _WARNING:
        return
    said = f"the destination answered {status:04X}"
    if status == _SOP_CLASS_NOT_SUPPORTED or status & 0xFF00 == _DOES_NOT_MATCH or kind == _CANNOT_UNDERSTAND:
        raise NotTaken(said)
    raise UpstreamError(said)
