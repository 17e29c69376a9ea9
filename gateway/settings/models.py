"""[engine], [models] and [drift]: the protected models, what examines their input, and whether it still may."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gateway.settings.fields import Address, Directory, File, SecretFile, Table, loopback


class EngineConfig(Table):
    """The detection worker and the batches it is fed."""

    device: Literal["cpu", "cuda"]
    batch_size_max: Annotated[int, Field(ge=1, le=512)]
    batch_wait_ms_max: Annotated[float, Field(ge=0.0, le=10_000.0)]
    """How long the first scan of a batch waits for others."""
    queue_max: Annotated[int, Field(ge=1, le=65536)]
    threads: Annotated[int, Field(ge=1, le=1024)]
    """Threads of the worker's arithmetic on the CPU."""


class KServeTlsConfig(Table):
    """How the model's server and the gateway know each other."""

    roots: File
    """Authorities of the server's certificate, PEM."""
    certificate: File | None = None
    """The gateway's own, where the server asks for one."""
    private_key: SecretFile | None = None
    server_name: str | None = None
    """Name in the server's certificate, where it is not the host of the address."""

    @model_validator(mode="after")
    def _a_pair(self) -> Self:
        if (self.certificate is None) != (self.private_key is None):
            raise ValueError("certificate and private_key belong together")
        return self


class KServeConfig(Table):
    """A model server that speaks the Open Inference Protocol (KServe v2) over gRPC."""

    address: Address
    model: Annotated[str, Field(min_length=1, max_length=256)]
    """Its name on that server."""
    version: str = ""
    """Empty: the one that the server chooses."""
    tls: KServeTlsConfig | None = None
    unsafe_plaintext: bool = False
    """Without TLS; only to a loopback address."""
    attempt_s_max: Annotated[float, Field(gt=0.0, le=600.0)] = 10.0
    """Of one attempt; the caller's own deadline holds as well."""
    attempts_max: Annotated[int, Field(ge=1, le=8)] = 3
    """In all, while the server is not reached; a server that answers is never asked again."""
    failures_max: Annotated[int, Field(ge=1, le=1000)] = 5
    """In a row; then the server is left alone."""
    pause_s: Annotated[float, Field(gt=0.0, le=600.0)] = 5.0
    """For how long, until one scan may try."""
    images_max: Annotated[int, Field(ge=1, le=4096)] = 32
    """In one request; more are asked about in several."""

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if (self.tls is None) != self.unsafe_plaintext:
            raise ValueError("needs either a tls table or unsafe_plaintext = true")
        if self.unsafe_plaintext and not loopback(self.address):
            raise ValueError(f"unsafe_plaintext is allowed to a loopback address only, not to {self.address}")
        return self


class ModelConfig(Table):
    """A protected model, what it expects, and the detectors fitted for it."""

    profile: File
    model: File | None = None
    """One file: ONNX; for models that a server serves also TorchScript or torch.export. Absent: the server alone has
    the model, and the detectors were fitted on its answers."""
    detectors: Directory
    """Artefact directory, as `scanward-lab fit` wrote it."""
    kserve: KServeConfig | None = None
    """Where the model is served, for routes with `upstream = "kserve"`, and for detectors that know no file of it."""


class DriftConfig(Table):
    """The watch on whether scans are still like those that the detectors were calibrated on (docs/drift.md)."""

    patients_between_false_alarms: Annotated[float, Field(ge=1_000.0, le=1e9)] = 100_000.0
    """At least, on average, of one source that has not changed."""
    patients_max: Annotated[int, Field(ge=1_000, le=100_000_000)] = 1_000_000
    """Remembered, so that each patient counts once."""
