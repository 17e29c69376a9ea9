"""The metrics door: what Prometheus scrapes, over TLS or on this machine alone, few connections at a time."""

from __future__ import annotations

import http.server
import socket
import socketserver
import ssl
import threading
from contextlib import suppress
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import MetricsHandler

from gateway.errors import ConfigError
from gateway.receivers.tls import Handshakes, socket_handshakes
from gateway.settings.doors import MetricsConfig

CONNECTIONS_MAX = 16
"""Open at once; more are hung up on. One Prometheus has one, and a person with a browser another."""
CONNECTION_S_MAX = 30.0
"""A connection that says nothing for so long is closed."""

_log = structlog.get_logger(__name__)


class MetricsDoor:
    """An HTTP server in threads of its own, each with one connection."""

    def __init__(self, config: MetricsConfig, registry: CollectorRegistry) -> None:
        """Listen; raises `ConfigError` where the address or the certificate cannot be had."""
        tls = None if config.tls is None else socket_handshakes("metrics.tls", config.tls)
        host, _, port = config.address.rpartition(":")
        try:
            self._server = _Server((host.strip("[]"), int(port)), registry, tls)
        except OSError as error:
            raise ConfigError(
                [f"metrics.address: {config.address} cannot be listened on: {error.strerror or type(error).__name__}"]
            ) from None
        self.address = f"{host}:{self._server.server_address[1]}"
        """HOST:PORT with the real port."""
        if config.unsafe_plaintext_metrics:
            _log.warning("unsafe_plaintext_metrics", address=self.address)

    def __enter__(self) -> MetricsDoor:
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(
        self, address: tuple[str, int], registry: CollectorRegistry, tls: Handshakes[ssl.SSLContext] | None
    ) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._tls = tls
        self._places = threading.BoundedSemaphore(CONNECTIONS_MAX)
        super().__init__(address, MetricsHandler.factory(registry))

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks the name service who we are

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def finish_request(self, request: Any, client_address: Any) -> None:
        """One connection: the handshake is the thread's, so that whoever does not finish it keeps nobody waiting."""
        request.settimeout(CONNECTION_S_MAX)
        with suppress(OSError):  # it hung up, or never began
            if self._tls is None:
                super().finish_request(request, client_address)
                return
            with self._tls.now().wrap_socket(request, server_side=True) as protected:
                super().finish_request(protected, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        _log.exception("call_crashed", receiver="metrics")
