"""The server's certificate and the authorities of its clients, read again at handshakes when the files change."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import grpc
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from gateway.errors import ConfigError
from gateway.settings.doors import TlsConfig

_LOOK_S = 1.0
"""Handshakes within this time of a look at the files do not look again."""

_log = structlog.get_logger(__name__)


class ServerCertificate:
    """What a handshake is made with: the files of now, or, where they do not fit together, those of before."""

    def __init__(self, config: TlsConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the files; raises `ConfigError`."""
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at = clock()
        self._seen = self._state()
        self._configuration = self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """For a port; connections that are there already keep the certificate that they began with."""
        return grpc.dynamic_ssl_server_credentials(
            self._configuration, self.changed, require_client_authentication=self._config.client_ca is not None
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What the next handshake shall use, where that is another; asked by gRPC at each of them."""
        with self._lock:
            now = self._clock()
            if now - self._looked_at < _LOOK_S:
                return None
            self._looked_at = now
            if (state := self._state()) == self._seen:
                return None
            self._seen = state
        try:
            configuration = self._read()
        except ConfigError as error:  # perhaps one file of two is written so far: the other will be a change again
            _log.error("certificate_refused", problems=error.problems)
            return None
        _log.info("certificate_taken")
        return configuration

    def _read(self) -> grpc.ServerCertificateConfiguration:
        config, where = self._config, "receivers.grpc.tls"
        try:
            chain, key = config.certificate.read_bytes(), config.private_key.read_bytes()
            roots = None if config.client_ca is None else config.client_ca.read_bytes()
        except OSError as error:
            raise ConfigError([f"{where}: {error.filename}: {error.strerror}"]) from error
        try:
            leaf = load_pem_x509_certificates(chain)[0].public_key()
        except ValueError as error:
            raise ConfigError([f"{where}.certificate: not a certificate in PEM"]) from error
        try:
            own = load_pem_private_key(key, None).public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConfigError([f"{where}.private_key: not a private key in PEM without a password"]) from error
        form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        if leaf.public_bytes(*form) != own.public_bytes(*form):
            raise ConfigError([f"{where}.private_key: does not belong to the certificate"])
        if roots is not None:
            try:
                load_pem_x509_certificates(roots)
            except ValueError as error:
                raise ConfigError([f"{where}.client_ca: no certificates in PEM"]) from error
        return grpc.ssl_server_certificate_configuration([(key, chain)], root_certificates=roots)

    def _state(self) -> tuple[tuple[int, int, int] | None, ...]:
        states: list[tuple[int, int, int] | None] = []
        for path in (self._config.certificate, self._config.private_key, self._config.client_ca):
            try:
                found = path.stat() if path is not None else None
            except OSError:
                found = None
            states.append(None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(states)
