"""The DICOM door: C-ECHO and C-STORE over an association, each scan in custody before it is acknowledged."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import structlog
from pydicom.uid import (
    UID,
    AllTransferSyntaxes,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from pynetdicom.presentation import AllStoragePresentationContexts

from gateway.callers.throttle import Throttle
from gateway.deadline import Deadline
from gateway.errors import AuditError, ConfigError, GatewayError, Overloaded, ScanError
from gateway.receivers.association import Association
from gateway.receivers.identity import Credentials
from gateway.receivers.inbox import Inbox
from gateway.receivers.nodes import Nodes
from gateway.receivers.receiver import Inflation, Mismatched, NotPermitted, Refusals, Unauthenticated
from gateway.receivers.tls import socket_handshakes
from gateway.receivers.upper_layer import (
    CALLED_AE_UNKNOWN,
    CALLING_AE_UNKNOWN,
    CONGESTION,
    LOCAL_LIMIT,
    Gone,
    ProtocolError,
    Rejection,
    Request,
    UpperLayer,
    agreed,
)
from gateway.scan import ANONYMOUS, Scan, Source
from gateway.settings.doors import DimseConfig
from gateway.store.spool import Spool, SpoolWriter
from signing import DicomError, Elements
from signing.dictionary import SOP_CLASS_UID, SOP_INSTANCE_UID
from signing.filemeta import MEDIA_STORAGE_SOP_CLASS_UID, MEDIA_STORAGE_SOP_INSTANCE_UID

RECEIVER = "dimse"
"""Name of this door in metrics and records."""

_IDENTITY = ((MEDIA_STORAGE_SOP_CLASS_UID, SOP_CLASS_UID), (MEDIA_STORAGE_SOP_INSTANCE_UID, SOP_INSTANCE_UID))
_VERIFICATION = "1.2.840.10008.1.1"
_STANDARD = "1.2.840.10008."
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_OTHER_STORAGE = frozenset(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
_BACKLOG = 128
_STRANGERS_PER_ADDRESS_MAX = 16
"""Connections from one address that have not asked for an association yet: who only connects keeps nobody out."""

SYNTAXES: Final = (
    str(ExplicitVRLittleEndian),
    str(ImplicitVRLittleEndian),
    str(DeflatedExplicitVRLittleEndian),
    str(ExplicitVRBigEndian),
    *(str(syntax) for syntax in AllTransferSyntaxes if UID(syntax).is_encapsulated),
)
"""Transfer syntaxes in which scans are taken: every one that can be stored as it came."""

_log = structlog.get_logger(__name__)


class DimseReceiver:
    """Listens for associations; one thread for each, so many at most."""

    def __init__(
        self,
        config: DimseConfig,
        *,
        nodes: Callable[[], Nodes],
        inbox: Inbox,
        spool: Spool,
        throttle: Throttle,
        refuse: Callable[[GatewayError, str], object],
    ) -> None:
        """`nodes` is asked for at each association; `refuse(error, source name)` records what was turned away."""
        self._config = config
        self._nodes = nodes
        self._inbox = inbox
        self._spool = spool
        self._throttle = throttle
        self._refusals = Refusals(refuse)
        self._inflation = Inflation()
        self._tls = None if config.tls is None else socket_handshakes("receivers.dimse.tls", config.tls)
        self._lock = threading.Condition()
        self._strangers: Counter[str] = Counter()
        self._open = 0
        self._associations = 0
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None

    def start(self) -> str:
        """Listen; returns HOST:PORT with the real port. Raises `ConfigError` where the address cannot be had."""
        host, _, port = self._config.address.rpartition(":")
        try:
            self._listener = socket.create_server((host.strip("[]"), int(port)), backlog=_BACKLOG)
        except OSError as error:
            raise ConfigError(
                [f"receivers.dimse.address: {self._config.address} cannot be listened on: {error.strerror}"]
            ) from None
        threading.Thread(target=self._accept, name="dimse-accept", daemon=True).start()
        return f"{host}:{self._listener.getsockname()[1]}"

    def drain(self, seconds: float) -> None:
        """Take no more associations; those open end after the message they are in, or after that long."""
        self._stopping.set()
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        with self._lock:
            self._lock.wait_for(lambda: not self._open, seconds)
        with suppress(AuditError):
            self._refusals.close()

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._stopping.is_set():
            try:
                connection, address = self._listener.accept()
            except OSError:
                if not self._stopping.is_set():
                    time.sleep(0.1)  # out of descriptors: whoever is here must first leave
                continue
            with self._lock:
                crowded = self._open >= 2 * self._config.associations_max
                if crowded or self._strangers[address[0]] >= _STRANGERS_PER_ADDRESS_MAX:
                    connection.close()
                    continue
                self._open += 1
                self._strangers[address[0]] += 1
            threading.Thread(target=self._serve, args=(connection, address[0]), name="dimse", daemon=True).start()

    def _serve(self, connection: socket.socket, address: str) -> None:
        """One connection from its first byte to its last."""
        stranger = True

        def known() -> None:
            nonlocal stranger
            if stranger:
                stranger = False
                with self._lock:
                    self._strangers -= Counter({address: 1})

        try:
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._speak(connection, known)
        except Exception:
            _log.exception("association_crashed", receiver=RECEIVER)
        finally:
            known()
            with self._lock:
                self._open -= 1
                self._lock.notify_all()

    def _speak(self, connection: socket.socket, known: Callable[[], None]) -> None:
        shown = Credentials()
        if self._tls is not None:
            connection.settimeout(self._config.request_s_max)
            try:
                connection = self._tls.now().wrap_socket(connection, server_side=True)
            except OSError:
                return
            shown = _shown(connection)
        layer = UpperLayer(
            connection,
            pdu_bytes_max=self._config.pdu_bytes_max,
            idle_s=self._config.idle_s_max,
            stopping=self._stopping.is_set,
        )
        with connection, suppress(Gone):
            try:
                request = layer.request(self._config.request_s_max)
                known()
                self._associate(layer, request, shown)
            except ProtocolError as error:
                layer.abort(error.reason)

    def _associate(self, layer: UpperLayer, request: Request, shown: Credentials) -> None:
        with self._lock:
            room = self._associations < self._config.associations_max
            self._associations += room
        if not room:
            layer.reject(LOCAL_LIMIT)
            return
        try:
            found = self._admit(request, shown)
            if isinstance(found, Rejection):
                layer.reject(found)
                return
            route, source = found
            accepted = agreed(request, _takes, SYNTAXES)
            layer.accept(request, accepted)
            Association(layer, request, accepted, self, route, source, shown).run()
        finally:
            with self._lock:
                self._associations -= 1

    def _admit(self, request: Request, shown: Credentials) -> tuple[str, Source] | Rejection:
        """The route and the source of an association, or why it is refused."""
        nodes = self._nodes()
        try:
            try:
                route = nodes.route(request.called_ae)
            except NotPermitted as error:
                self._refusals.refused(error, ANONYMOUS)
                return CALLED_AE_UNKNOWN
            try:
                return route, nodes.admit(request.calling_ae, route=route, shown=shown)
            except (Unauthenticated, NotPermitted) as error:
                self._refusals.refused(error, ANONYMOUS)
                return CALLING_AE_UNKNOWN
        except AuditError:
            return CONGESTION

    def take(self, writer: SpoolWriter, *, route: str, source: Source, shown: Credentials) -> None:
        """Look whether a whole object can be read, then take it into custody.

        Raises:
            ScanError: it cannot be read, is another instance than the command said, or no routing rule takes it.
            Overloaded: there is no room.
        """
        sha256, hashed, data = writer.sha256, writer.hashed(), writer.seal()
        with self._inflation.room(data, Deadline.after(self._config.idle_s_max)):
            scan = Scan.receive(data, route=route, receiver=RECEIVER, source=source, sha256=sha256, hashed=hashed)
            if scan.elements is None:
                raise ScanError(scan.defect.detail if scan.defect is not None else "")
            if any(_values(scan.elements, tag) != {scan.elements.meta[meta]} for meta, tag in _IDENTITY):
                raise Mismatched("SOP Class or Instance UID is another than in the command")
            route = self._nodes().direct(scan, shown)
        self._wait_for_turn(source, len(data))
        self._inbox.take(data, sha256, route=route, receiver=RECEIVER, source=source)

    def refused(self, error: GatewayError, source: Source) -> None:
        """Put a refused object on record; what stands in no record is not refused for good."""
        _log.info("call_refused", receiver=RECEIVER, source=source.name, error=type(error).__name__)
        self._refusals.refused(error, source.name)

    def open_spool(self, source: Source) -> SpoolWriter:
        """A writer for one object of this source."""
        return self._spool.open(owner=source.identity, share=self._throttle.limits_of(source).spool_share)

    @property
    def object_bytes_max(self) -> int:
        """Of one object; more of it is not even thrown away."""
        return self._spool.bytes_max_per_object

    def _wait_for_turn(self, source: Source, size: int) -> None:
        """A source that sends faster than it may is answered later: a refusal would cost it the rest of the study."""
        until = time.monotonic() + self._config.idle_s_max / 2
        while True:
            try:
                return self._throttle.scan(source, size)
            except Overloaded as error:
                if error.retry_after_s is None or time.monotonic() + error.retry_after_s > until:
                    raise
                if self._stopping.wait(error.retry_after_s):
                    raise


def _takes(abstract: str) -> bool:
    """Storage SOP classes, those of manufacturers included; of the standard's other services verification alone."""
    storage = abstract.startswith(_STORAGE) or abstract in _OTHER_STORAGE
    return storage or abstract == _VERIFICATION or not abstract.startswith(_STANDARD)


def _values(elements: Elements, tag: int) -> set[bytes]:
    """What the data set has there, bare of padding; a set, so that nothing is never the same as something."""
    try:
        return {(elements.text(tag) or "").encode()}
    except DicomError:
        return set()


def _shown(connection: ssl.SSLSocket) -> Credentials:
    """The names in the verified client certificate; no common name where it has several."""
    certificate: Any = connection.getpeercert() or {}
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    alternative = frozenset(value for _, value in certificate.get("subjectAltName", ()))
    return Credentials(common_name=names[0] if len(names) == 1 else None, alternative_names=alternative)
