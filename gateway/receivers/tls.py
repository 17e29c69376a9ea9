"""A door's certificate and the authorities of its clients, read again at handshakes when the files change."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Self, TypeAlias, TypeVar

import grpc
import structlog
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from gateway.errors import ConfigError
from gateway.settings.doors import DicomTlsConfig, TlsConfig

_LOOK_S = 1.0
"""Handshakes within this time of a look at the files do not look again."""

_log = structlog.get_logger(__name__)

TlsFiles: TypeAlias = TlsConfig | DicomTlsConfig
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Pem:
    """What the files hold, each in PEM; they fit together."""

    chain: bytes
    private_key: bytes
    client_ca: bytes | None


class Handshakes(Generic[T]):
    """What handshakes are made with: made of the files of now, or, where they do not fit together, of those before.

    Connections that are there already keep what they began with. Thread-safe.
    """

    def __init__(
        self, where: str, config: TlsFiles, make: Callable[[Pem], T], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Read the files; raises `ConfigError`, whose keys begin with `where`."""
        self._where = where
        self._config = config
        self._make = make
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at = clock()
        self._seen = self._state()
        self.made = self._read()
        """As of the last look."""

    def changed(self) -> T | None:
        """What the next handshake shall use, where that is another than at the last look."""
        with self._lock:
            now = self._clock()
            if now - self._looked_at < _LOOK_S:
                return None
            self._looked_at = now
            if (state := self._state()) == self._seen:
                return None
            self._seen = state
            try:
                self.made = self._read()
            except ConfigError as error:  # perhaps one file of two is written so far: the other will be a change again
                _log.error("certificate_refused", problems=error.problems)
                return None
        _log.info("certificate_taken")
        return self.made

    def now(self) -> T:
        """What a handshake shall use that begins now."""
        return self.changed() or self.made

    def _read(self) -> T:
        config, where = self._config, self._where
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
        try:
            return self._make(Pem(chain, key, roots))
        except (OSError, ValueError) as error:  # of the TLS library, which may be stricter
            raise ConfigError([f"{where}: cannot be used ({type(error).__name__})"]) from error

    def _state(self) -> tuple[tuple[int, int, int] | None, ...]:
        states: list[tuple[int, int, int] | None] = []
        for path in (self._config.certificate, self._config.private_key, self._config.client_ca):
            try:
                found = path.stat() if path is not None else None
            except OSError:
                found = None
            states.append(None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns))
        return tuple(states)


# -- for gRPC --


def grpc_handshakes(where: str, config: TlsFiles) -> Handshakes[grpc.ServerCertificateConfiguration]:
    """What gRPC's own TLS is given; raises `ConfigError`."""
    return Handshakes(
        where,
        config,
        lambda pem: grpc.ssl_server_certificate_configuration(
            [(pem.private_key, pem.chain)], root_certificates=pem.client_ca
        ),
    )


def grpc_credentials(
    handshakes: Handshakes[grpc.ServerCertificateConfiguration], *, ask_clients: bool
) -> grpc.ServerCredentials:
    """For a port; gRPC asks at each handshake."""
    return grpc.dynamic_ssl_server_credentials(
        handshakes.made, handshakes.changed, require_client_authentication=ask_clients
    )


# -- for sockets --


def socket_handshakes(where: str, config: TlsFiles) -> Handshakes[ssl.SSLContext]:
    """What Python's sockets are wrapped with: TLS 1.2 or later, and where there is a `client_ca`, certificates asked.

    Raises:
        ConfigError: the files cannot be used.
    """

    def make(pem: Pem) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(config.certificate, config.private_key)  # it takes files alone, and compares them too
        if pem.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=pem.client_ca.decode("ascii"))
        return context

    return Handshakes(where, config, make)


class FreshContext(ssl.SSLContext):
    """A context for servers that take one for all of their life: each handshake is made by the files of then."""

    _handshakes: Handshakes[ssl.SSLContext]

    @classmethod
    def of(cls, handshakes: Handshakes[ssl.SSLContext]) -> Self:
        """Stands for what `handshakes` makes."""
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context._handshakes = handshakes
        return context

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """As the context of now does."""
        return self._handshakes.now().wrap_bio(*arguments, **options)
