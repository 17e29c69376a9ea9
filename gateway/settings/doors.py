"""[receivers] and [metrics]: where the service listens."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from gateway.settings.fields import Address, AeTitle, File, SecretFile, Table, loopback


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
    connections_max: Annotated[int, Field(ge=16, le=1 << 20)] = 16384
    """Connections, idle ones included; each costs a file descriptor and some tens of kilobytes."""
    message_bytes_max: Annotated[int, Field(ge=1 << 20, le=1 << 30)] = 16 << 20
    object_bytes_max: Annotated[int, Field(ge=1 << 20, le=1 << 31)] = 2 << 30
    """Largest streamed object."""
    call_s_max: Annotated[float, Field(gt=0.0, le=3600.0)] = 120.0
    """Deadline of a call whose sender gave none, or a longer one."""
    study_s_max: Annotated[float, Field(gt=0.0, le=86_400.0)] = 900.0
    """The same of a call that sends a whole study."""
    study_instances_max: Annotated[int, Field(ge=1, le=8000)] = 5000
    """Instances of a study that is sent as a whole."""
    drain_notice_s: Annotated[float, Field(ge=0.0, le=300.0)] = 0.0
    """How long calls are still taken after SIGTERM, while readiness is false already: for load balancers to notice."""
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


class DicomTlsConfig(Table):
    """Mutual TLS for DICOM (PS3.15 B.12): a node that shows no certificate opens no association."""

    certificate: File
    """PEM, the leaf first."""
    private_key: SecretFile
    client_ca: File


class DimseConfig(Table):
    """The DICOM door."""

    address: Address
    tls: DicomTlsConfig | None = None
    unsafe_plaintext: bool = False
    """Without TLS an AE title is all that tells who sends; scans admitted so are counted."""
    routes: Annotated[dict[AeTitle, str], Field(min_length=1)]
    """Route by called AE title."""
    associations_max: Annotated[int, Field(ge=1, le=4096)] = 32
    """Open at once; the next is refused for now (local limit exceeded)."""
    pdu_bytes_max: Annotated[int, Field(ge=4096, le=1 << 24)] = 1 << 17
    request_s_max: Annotated[float, Field(gt=0.0, le=600.0)] = 10.0
    """From the connection to the end of the association request (ARTIM timer, PS3.8 9.1.4)."""
    idle_s_max: Annotated[float, Field(gt=0.0, le=3600.0)] = 60.0
    """How long an association may say nothing, and one PDU may take."""
    examiners: Annotated[int, Field(ge=1, le=1024)] = 8
    """Scans from the inbox examined at once; at least twice engine.batch_size_max fills the batches."""
    examine_s_max: Annotated[float, Field(gt=0.0, le=3600.0)] = 120.0
    inbox_bytes_max: Annotated[int, Field(ge=1 << 20)] = 16 << 30
    """Scans acknowledged and not examined yet; beyond it senders hear A700, out of resources."""
    drain_s_max: Annotated[float, Field(ge=0.0, le=3600.0)] = 30.0

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if (self.tls is None) != self.unsafe_plaintext:
            raise ValueError("needs either a [receivers.dimse.tls] table or unsafe_plaintext = true")
        return self


class StowConfig(Table):
    """The DICOMweb door: STOW-RS over HTTP."""

    address: Address
    tls: TlsConfig | None = None
    unsafe_plaintext: bool = False
    """Without TLS; only on a loopback address."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 8
    """Instances examined at once."""
    connections_max: Annotated[int, Field(ge=1, le=65536)] = 64
    """Open at once; the next is answered 503."""
    instances_max: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """In one request."""
    idle_s_max: Annotated[float, Field(gt=0.0, le=3600.0)] = 60.0
    """How long a sender may say nothing."""
    examine_s_max: Annotated[float, Field(gt=0.0, le=3600.0)] = 120.0
    """Deadline of one examination."""
    drain_s_max: Annotated[float, Field(ge=0.0, le=3600.0)] = 30.0

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if (self.tls is None) != self.unsafe_plaintext:
            raise ValueError("needs either a [receivers.stow.tls] table or unsafe_plaintext = true")
        if self.unsafe_plaintext and not loopback(self.address):
            raise ValueError(f"unsafe_plaintext is allowed on a loopback address only, not on {self.address}")
        return self


class ReceiversConfig(Table):
    """The doors."""

    grpc: GrpcConfig
    dimse: DimseConfig | None = None
    """Without the table there is no DICOM port."""
    stow: StowConfig | None = None
    """Without the table there is no HTTP port."""

    @property
    def work_s_max(self) -> float:
        """The longest that any door works on what it was sent."""
        others = [door.examine_s_max for door in (self.dimse, self.stow) if door is not None]
        return max(self.grpc.call_s_max, self.grpc.study_s_max, *others)


class MetricsConfig(Table):
    """Prometheus endpoint; it serves figures and health, never patient data."""

    address: Address
    tls: TlsConfig | None = None
    """With `client_ca`, whoever scrapes must show a certificate."""
    unsafe_plaintext_metrics: bool = False
    """Without TLS on an address that others reach: whoever can see or change that traffic sees or changes figures."""

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if self.tls is not None and self.unsafe_plaintext_metrics:
            raise ValueError("needs either a [metrics.tls] table or unsafe_plaintext_metrics = true, not both")
        if self.tls is None and not self.unsafe_plaintext_metrics and not loopback(self.address):
            needed = "needs a [metrics.tls] table or unsafe_plaintext_metrics = true"
            raise ValueError(f"{needed}, because {self.address} is no loopback address")
        return self
