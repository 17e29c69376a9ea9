"""[receivers] and [metrics]: where the service listens."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from gateway.settings.fields import Address, File, SecretFile, Table, loopback


class TlsConfig(Table):
    """The server's certificate; with `client_ca`, senders may identify themselves by certificate (mTLS)."""

    certificate: File
    """PEM, the leaf first."""
    private_key: SecretFile
    client_ca: File | None = None


class GrpcConfig(Table):
    """The gRPC door."""

    address: Address
    tls: TlsConfig | None = None
    unsafe_plaintext: bool = False
    """Without TLS; only on a loopback address."""
    threads: Annotated[int, Field(ge=1, le=1024)]
    """Handler threads; each waits while the engine works on its scan."""
    concurrent_calls_max: Annotated[int, Field(ge=1, le=65536)]
    """Calls in progress or waiting for a thread; the next is answered RESOURCE_EXHAUSTED."""
    message_bytes_max: Annotated[int, Field(ge=1 << 20, le=1 << 30)] = 16 << 20
    object_bytes_max: Annotated[int, Field(ge=1 << 20, le=1 << 31)] = 2 << 30
    """Largest streamed object."""
    call_s_max: Annotated[float, Field(gt=0.0, le=3600.0)] = 120.0
    """Deadline of a call whose sender gave none, or a longer one."""
    study_s_max: Annotated[float, Field(gt=0.0, le=86_400.0)] = 900.0
    """The same of a call that sends a whole study."""
    study_instances_max: Annotated[int, Field(ge=1, le=8000)] = 5000
    """Instances of a study that is sent as a whole."""
    drain_s_max: Annotated[float, Field(ge=0.0, le=3600.0)] = 30.0
    """How long calls in progress may still take once the service was told to stop."""
    reflection: bool = False

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if (self.tls is None) != self.unsafe_plaintext:
            raise ValueError("needs either a [receivers.grpc.tls] table or unsafe_plaintext = true")
        if self.unsafe_plaintext and not loopback(self.address):
            raise ValueError(f"unsafe_plaintext is allowed on a loopback address only, not on {self.address}")
        return self


class ReceiversConfig(Table):
    """The doors."""

    grpc: GrpcConfig


class MetricsConfig(Table):
    """Prometheus endpoint; it serves figures and health, never patient data."""

    address: Address
