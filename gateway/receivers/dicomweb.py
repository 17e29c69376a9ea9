"""The DICOMweb door: STOW-RS (PS3.18 10.5), each instance examined as it arrives and answered in the response."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import structlog
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from gateway.callers.throttle import Throttle
from gateway.deadline import Deadline
from gateway.errors import AuditError, ConfigError, GatewayError, Overloaded, ScanError, TooLarge
from gateway.receivers.crowd import CrowdListener
from gateway.receivers.gate import Gate
from gateway.receivers.identity import Caller, Credentials
from gateway.receivers.multipart import Begin, Data, Multipart, boundary_of
from gateway.receivers.receiver import ON_RECORD, CutOff, Inflation, Mismatched, Refusals, Unauthenticated
from gateway.receivers.roles import Role
from gateway.receivers.status import status_of
from gateway.receivers.stow_body import Receive, Waste, events
from gateway.receivers.stow_response import JSON, XML, Stored, body, problem, status
from gateway.receivers.tls import FreshContext, socket_handshakes
from gateway.scan import ANONYMOUS, Scan
from gateway.service import ProtectionService
from gateway.settings.doors import StowConfig
from gateway.store.spool import Spool, SpoolWriter
from signing import DicomError

RECEIVER = "stow"
"""Name of this door in metrics and records."""

_STUDY_INSTANCE_UID = 0x0020000D
_PATH = re.compile(r"(?:/(?P<route>[a-z0-9][a-z0-9_-]{0,63}))?/studies(?:/(?P<study>[0-9.]{1,64}))?/?")
_BACKLOG = 128
_HEADER_S_MAX = 10.0
"""From a connection to the end of the first request's header."""
_STRANGERS_PER_ADDRESS_MAX = 16
"""Connections from one address on which no request has come yet; never more than a quarter of all."""

_log = structlog.get_logger(__name__)
Send = Callable[[dict[str, Any]], Awaitable[None]]


class _HttpError(Exception):
    """A request that has a status of HTTP's own."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(said)
        self.code = code


@dataclass(frozen=True, slots=True)
class _Asked:
    route: str
    study: str | None


@dataclass(frozen=True, slots=True)
class _Request:
    caller: Caller
    route: str
    study: str | None
    boundary: str
    accepts: str


@dataclass(slots=True)
class _Part:
    """One instance on its way in."""

    writer: SpoolWriter
    failure: GatewayError | None
    """Why it is read to its end and not kept."""
    waste: Waste

    def write(self, data: bytes) -> None:
        """Take the next bytes, or note why they are not taken; raises `TooLarge` where too much is thrown away."""
        if self.failure is None:
            try:
                self.writer.write(data)
            except (TooLarge, Overloaded) as error:
                self.failure = error
                self.writer.discard()
                self.waste.pay(self.writer.size)
                self.waste.take(len(data))
        else:
            self.waste.take(len(data))


class StowReceiver:
    """An HTTP server in a thread of its own."""

    def __init__(
        self,
        config: StowConfig,
        *,
        service: Callable[[], ProtectionService],
        gate: Callable[[], Gate],
        spool: Spool,
        throttle: Throttle,
    ) -> None:
        """`service` and `gate` are asked for at each request, so that a reload reaches the next one whole."""
        self._config = config
        self._service = service
        self._gate = gate
        self._spool = spool
        self._throttle = throttle
        self._inflation = Inflation()
        self._refusals = Refusals(lambda error, source: service().refuse(error, receiver=RECEIVER, source=source))
        self._pool = ThreadPoolExecutor(config.threads, thread_name_prefix="stow")
        self._server = uvicorn.Server(_settings(config, self))
        self._thread: threading.Thread | None = None
        self._listener: CrowdListener | None = None

    def start(self) -> str:
        """Listen; returns HOST:PORT with the real port. Raises `ConfigError` where the address cannot be had."""
        host, _, port = self._config.address.rpartition(":")
        try:
            listener = socket.create_server((host.strip("[]"), int(port)), backlog=_BACKLOG)
            self._server.config.load()
            if self._config.tls is not None:
                handshakes = socket_handshakes("receivers.stow.tls", self._config.tls)
                self._server.config.ssl = FreshContext.of(handshakes)
        except OSError as error:
            raise ConfigError(
                [f"receivers.stow: {self._config.address} cannot be listened on ({type(error).__name__})"]
            ) from None
        most = self._config.connections_max
        strangers = max(1, min(_STRANGERS_PER_ADDRESS_MAX, most // 4))
        self._listener = CrowdListener(listener, open_max=2 * most, strangers_max=strangers)
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="stow", daemon=True)
        self._thread.start()
        return f"{host}:{self._listener.getsockname()[1]}"

    def drain(self, seconds: float) -> None:
        """Take no more requests, give those in progress that long, and close."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(seconds + 1.0)
        self._pool.shutdown(wait=True, cancel_futures=True)
        with suppress(AuditError):
            self._refusals.close()

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """One request (ASGI)."""
        assert scope["type"] == "http"
        assert self._listener is not None
        self._listener.known(scope["client"])
        source, headers = ANONYMOUS, [(b"content-type", b"text/plain")]
        try:
            asked = _asked(scope)
            caller = self._gate().admit(_shown(scope))
            source = caller.source.identity
            request = self._admit(asked, caller, _headers(scope))
            with self._throttle.call(request.caller.source):
                stored = await self._store(request, receive)
            code, answer = status(stored), body(stored, request.accepts)
            headers = [(b"content-type", request.accepts.encode())]
        except _HttpError as refused:
            code, answer = refused.code, f"{refused}\n".encode()
        except GatewayError as error:
            code, answer = await self._turned_away(error, source)
            if isinstance(error, Unauthenticated):
                headers.append((b"www-authenticate", b"Bearer"))
        except Exception as error:
            _log.exception("call_crashed", receiver=RECEIVER, source=source)
            code, answer = await self._turned_away(GatewayError(f"internal error: {type(error).__name__}"), source)
        if code == 503:
            headers.append((b"retry-after", b"1"))
        headers += [(b"content-length", str(len(answer)).encode()), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": code, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    def _admit(self, asked: _Asked, caller: Caller, headers: dict[str, str]) -> _Request:
        """Whether a known caller may have what it asks for, before any byte of the body is taken."""
        caller.require(frozenset({Role.SUBMIT}))
        route = caller.route(asked.route, by_rule=True)
        self._throttle.admit(caller.source)
        boundary = boundary_of(headers.get("content-type", ""))
        if boundary is None:
            raise _HttpError(415, 'the body must be multipart/related; type="application/dicom"')
        accepted = headers.get("accept", JSON)
        accepts = XML if XML in accepted and JSON not in accepted else JSON
        return _Request(caller, route, asked.study, boundary, accepts)

    async def _store(self, request: _Request, receive: Receive) -> list[Stored]:
        """Take part after part from the body; each is examined before the next is read."""
        parts, stored = Multipart(request.boundary), list[Stored]()
        waste = Waste(self._throttle, request.caller.source, self._spool.bytes_max_per_object)
        part: _Part | None = None
        try:
            async for event in events(receive, self._config.idle_s_max, parts, waste):
                if isinstance(event, Begin):
                    if len(stored) >= self._config.instances_max:
                        raise TooLarge(f"more than {self._config.instances_max} instances in one request")
                    part = _Part(self._open(request), _foreign(event.media_type), waste)
                    continue
                assert part is not None
                if isinstance(event, Data):
                    part.write(event.data)
                else:
                    stored.append(await self._finish(part, request))
        finally:
            if part is not None:
                part.writer.discard()
        if not parts.whole:
            raise CutOff("the body ended before its closing delimiter")
        if not stored:
            raise ScanError("the body has no part")
        return stored

    def _open(self, request: _Request) -> SpoolWriter:
        source = request.caller.source
        return self._spool.open(owner=source.identity, share=self._throttle.limits_of(source).spool_share)

    async def _finish(self, part: _Part, request: _Request) -> Stored:
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._examine, part, request)

    def _examine(self, part: _Part, request: _Request) -> Stored:
        """What became of one instance; a failure is its own, and the request goes on."""
        scan, asked = None, False
        try:
            if part.failure is not None:
                raise part.failure
            writer = part.writer
            sha256, hashed, data = writer.sha256, writer.hashed(), writer.seal()
            deadline = Deadline.after(self._config.examine_s_max)
            source = request.caller.source
            with self._inflation.room(data, deadline):
                scan = Scan.receive(
                    data, route=request.route, receiver=RECEIVER, source=source, sha256=sha256, hashed=hashed
                )
                if not scan.route:
                    scan = replace(scan, route=request.caller.route(self._service().route_by_rule(scan)))
                if request.study is not None and _study_of(scan) != request.study:
                    raise Mismatched("the instance belongs to another study than the one asked for")
                asked = True
                return Stored.answered(scan, self._service().protect(scan, deadline))
        except GatewayError as error:
            if scan is not None and not asked:
                self._throttle.wasted(request.caller.source, len(scan.data))
            if not isinstance(error, ON_RECORD):
                with suppress(AuditError):
                    self._refusals.refused(error, request.caller.source.identity)
            return Stored.failed(error, scan)

    async def _turned_away(self, error: GatewayError, source: str) -> tuple[int, bytes]:
        """A request that was refused as a whole: on record first."""
        _log.info("call_refused", receiver=RECEIVER, source=source, error=type(error).__name__)
        try:
            await asyncio.get_running_loop().run_in_executor(None, self._refusals.refused, error, source)
        except AuditError as unrecorded:
            error = unrecorded
        said = error if isinstance(error, ScanError | Overloaded | CutOff) else GatewayError("internal error")
        return status_of(error).http, problem(said)


class _Protocol(H11Protocol):
    """uvicorn's own, which hangs up on a silent stranger and notes the names in the client's certificate."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connection = transport.get_extra_info("ssl_object")
        certificate: Any = connection.getpeercert() if connection is not None else None
        if certificate:
            names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
            alternative = frozenset(value for _, value in certificate.get("subjectAltName", ()))
            self.app_state = {
                **self.app_state,
                "names": Credentials(None, names[0] if len(names) == 1 else None, alternative),
            }
        self._patience = self.loop.call_later(_HEADER_S_MAX, self._hang_up)

    def _hang_up(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def _settings(config: StowConfig, app: StowReceiver) -> uvicorn.Config:
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    return uvicorn.Config(
        app,
        http=_Protocol,
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=config.connections_max,
        timeout_graceful_shutdown=int(config.drain_s_max),
    )


def _asked(scope: dict[str, Any]) -> _Asked:
    found = _PATH.fullmatch(scope["path"])
    if found is None:
        raise _HttpError(404, "there is nothing here but studies")
    if scope["method"] != "POST":
        raise _HttpError(405, "instances are stored with POST")
    return _Asked(found["route"] or "", found["study"])


def _headers(scope: dict[str, Any]) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _shown(scope: dict[str, Any]) -> Credentials:
    """What the request brought to show who makes it: the names in its connection's certificate, and a token."""
    scheme, _, token = _headers(scope).get("authorization", "").partition(" ")
    names: Credentials = scope["state"].get("names", Credentials())
    return replace(names, token=token.strip() if scheme.lower() == "bearer" else "") if scheme else names


def _foreign(media_type: str) -> GatewayError | None:
    return None if media_type == "application/dicom" else ScanError("a part is not application/dicom")


def _study_of(scan: Scan) -> str | None:
    try:
        return scan.elements.text(_STUDY_INSTANCE_UID) if scan.elements is not None else None
    except DicomError:
        return None
