"""The service's configuration: one TOML file into frozen models, every mistake named by its key."""

from __future__ import annotations

import ipaddress
import json
import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator
from pydantic_core import ErrorDetails

from gateway.coherence import NAME, mistakes_between_tables
from gateway.errors import ConfigError


def _resolved(path: Path, info: ValidationInfo) -> Path:
    """Paths are relative to the configuration file, so that the service may be started from anywhere."""
    root = (info.context or {}).get("root")
    return (root / path).resolve() if root is not None else path.resolve()


def _readable_file(path: Path, info: ValidationInfo) -> Path:
    path = _resolved(path, info)
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} is not readable")
    return path


def _readable(path: Path, info: ValidationInfo) -> Path:
    path = _resolved(path, info)
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} is missing or not readable")
    return path


def _directory(path: Path, info: ValidationInfo) -> Path:
    path = _resolved(path, info)
    if not path.is_dir():
        raise ValueError(f"there is no directory {path}")
    return path


def _secret_file(path: Path, info: ValidationInfo) -> Path:
    path = _readable_file(path, info)
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ValueError(f"{path} is open to others (mode {mode:04o}); it must be 0600")
    return path


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise ValueError("must be HOST:PORT, the port between 0 and 65535")
    return value


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return value


File = Annotated[Path, AfterValidator(_readable_file)]
Directory = Annotated[Path, AfterValidator(_directory)]
FileOrDirectory = Annotated[Path, AfterValidator(_readable)]
SecretFile = Annotated[Path, AfterValidator(_secret_file)]
OwnDirectory = Annotated[Path, AfterValidator(_resolved)]
Address = Annotated[str, AfterValidator(_address)]
Url = Annotated[str, AfterValidator(_url)]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class SignaturePolicy(_Table):
    """What follows from the signature stage; a failed or stripped signature is never admitted."""

    failed: Literal["reject", "quarantine"]
    unsigned: Literal["reject", "quarantine", "unsafe_admit"]
    stripped: Literal["reject", "quarantine"]


class DetectionPolicy(_Table):
    """What follows from the detectors' p-value."""

    false_positive_rate: Annotated[float, Field(gt=0.0, lt=1.0)]
    """A scan with p <= this is suspect; the artefact must be calibrated for it."""
    suspect: Literal["reject", "quarantine"]
    denoise: Literal["never", "if_agree"]
    grey_p: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Upper end of the grey zone; with `if_agree` only."""

    @model_validator(mode="after")
    def _grey_zone(self) -> Self:
        if self.denoise == "if_agree" and (self.grey_p is None or self.grey_p <= self.false_positive_rate):
            raise ValueError('denoise = "if_agree" needs grey_p greater than false_positive_rate')
        if self.denoise == "never" and self.grey_p is not None:
            raise ValueError('grey_p has no meaning with denoise = "never"')
        return self


class PolicyConfig(_Table):
    """The service policy (architecture 5.6): the worst matching word wins, and every key must be written."""

    indeterminate: Literal["reject", "quarantine", "unsafe_admit"]
    """The gateway could not finish an examination: a crash, a timeout, a lost worker."""
    unexaminable: Literal["reject", "quarantine", "unsafe_admit"]
    """The scan cannot be examined by this route: no pixels, an unsupported transfer syntax, a wrong size."""
    signature: SignaturePolicy
    detection: DetectionPolicy | None = None
    """Required where the route has a model."""


class TlsConfig(_Table):
    """The server's certificate; with `client_ca`, senders may identify themselves by certificate (mTLS)."""

    certificate: File
    """PEM, the leaf first."""
    private_key: SecretFile
    client_ca: File | None = None


class GrpcConfig(_Table):
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
    drain_s_max: Annotated[float, Field(ge=0.0, le=3600.0)] = 30.0
    """How long calls in progress may still take once the service was told to stop."""
    reflection: bool = False

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if (self.tls is None) != self.unsafe_plaintext:
            raise ValueError("needs either a [receivers.grpc.tls] table or unsafe_plaintext = true")
        if self.unsafe_plaintext and not _loopback(self.address):
            raise ValueError(f"unsafe_plaintext is allowed on a loopback address only, not on {self.address}")
        return self


class ReceiversConfig(_Table):
    """The doors."""

    grpc: GrpcConfig


class MetricsConfig(_Table):
    """Prometheus endpoint; it serves figures and health, never patient data."""

    address: Address


class StorageConfig(_Table):
    """Where records, held scans and streams in progress lie."""

    directory: OwnDirectory
    """Created with mode 0700 where it is missing."""
    spool_bytes_max: Annotated[int, Field(ge=1 << 20)]
    """Bytes of streams in progress, all together."""
    quarantine_bytes_max: Annotated[int, Field(ge=1 << 20)]
    """Held scans, all together; when full, scans that would be held are refused, and none is lost."""
    ledger_rows_max: Annotated[int, Field(ge=1)] = 200_000
    """Answers that are remembered, so that the same bytes get the same answer."""
    ledger_days_max: Annotated[float, Field(gt=0.0)] = 90.0
    replay_days_max: Annotated[float, Field(gt=0.0)] | None = None
    """How long the replay ledger remembers an accepted instance; without it, for ever."""


class KeysConfig(_Table):
    """The gateway's private keys (architecture 5.8); PEM files of mode 0600."""

    receipt: SecretFile
    checkpoint: SecretFile
    quarantine: SecretFile
    """Key-encryption key of the quarantine: 32 bytes in hexadecimal."""
    retired_checkpoints: tuple[File, ...] = ()
    """Public halves of earlier checkpoint keys; they verify the records of their time."""


class EngineConfig(_Table):
    """The detection worker and the batches it is fed."""

    device: Literal["cpu", "cuda"]
    batch_size_max: Annotated[int, Field(ge=1, le=512)]
    batch_wait_ms_max: Annotated[float, Field(ge=0.0, le=10_000.0)]
    """How long the first scan of a batch waits for others."""
    queue_max: Annotated[int, Field(ge=1, le=65536)]
    threads: Annotated[int, Field(ge=1, le=1024)]
    """Threads of the worker's arithmetic on the CPU."""


class ModelConfig(_Table):
    """A protected model, what it expects, and the detectors fitted for it."""

    profile: File
    model: File
    """ONNX, one file."""
    detectors: Directory
    """Artefact directory, as `scanward-lab fit` wrote it."""


class ArtefactTrust(_Table):
    """Whose signature under an artefact is believed."""

    public_keys: tuple[File, ...]
    """Ed25519 public keys, PEM."""
    unsafe_unsigned_artefacts: bool = False
    unsafe_marginal_guarantee: bool = False
    """Serve detectors whose false-positive rate holds on average, not with 95 % confidence."""

    @model_validator(mode="after")
    def _somebody(self) -> Self:
        if not self.public_keys and not self.unsafe_unsigned_artefacts:
            raise ValueError("public_keys is empty, so no artefact can be believed")
        return self


class RefreshConfig(_Table):
    """Where `scanward trust refresh` finds revocation material, beside the addresses that certificates name."""

    certificates: tuple[FileOrDirectory, ...] = ()
    """Of signers: they are asked after like the intermediates are."""
    crl_urls: tuple[Url, ...] = ()
    ocsp_urls: tuple[Url, ...] = ()
    """Asked about certificates that name no responder."""


class TrustConfig(_Table):
    """One trust policy and the certificates and revocation data that go with it; PEM or DER files or directories."""

    policy: File
    """Trust policy, TOML (architecture 5.1)."""
    roots: Annotated[tuple[FileOrDirectory, ...], Field(min_length=1)]
    intermediates: tuple[FileOrDirectory, ...] = ()
    crls: tuple[FileOrDirectory, ...] = ()
    ocsp: tuple[FileOrDirectory, ...] = ()
    refresh: RefreshConfig = RefreshConfig()


class TrustTable(BaseModel):
    """[trust]: the artefact keys, and one trust policy for each other name."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)
    __pydantic_extra__: dict[str, TrustConfig]

    artefacts: ArtefactTrust | None = None

    @classmethod
    def load(cls, path: Path) -> TrustTable:
        """Read this table alone, for those who must not be able to read the gateway's keys; raises `ConfigError`."""
        table = _document(path).get("trust", {})
        try:
            return cls.model_validate_json(json.dumps(table, default=str), context={"root": path.parent})
        except ValidationError as error:
            raise ConfigError(
                [f"trust.{problem}" for problem in _sentences(error.errors(include_url=False))]
            ) from error

    @property
    def policies(self) -> Mapping[str, TrustConfig]:
        """The trust policies by name."""
        return self.__pydantic_extra__


class RouteConfig(_Table):
    """What a scan sent to one name is examined by, judged by and forwarded to."""

    trust: str
    """Name of a [trust.NAME]."""
    model: str | None = None
    """Name of a [models.NAME]; without it the route examines signatures only."""
    upstream: Literal["embedded", "none"]
    """Whether the model answers here, or the caller asks it himself once the scan is admitted."""
    policy: PolicyConfig | None = None
    """Replaces the global [policy] as a whole."""


class SourceConfig(_Table):
    """One sender or reviewer, told by a bearer token or by the subject of its client certificate."""

    name: Name
    role: Literal["submit", "review"]
    """`review` also sees findings, exact reasons and p-values."""
    token_file: SecretFile | None = None
    """File with the bearer token alone, at least 32 characters."""
    tls_subject: str | None = None
    """Common name of the client certificate."""
    enrolled: bool
    """An enrolled source signs all it sends: what arrives unsigned from it has been stripped."""
    routes: Annotated[tuple[str, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if (self.token_file is None) == (self.tls_subject is None):
            raise ValueError("needs either token_file or tls_subject")
        return self


class Config(_Table):
    """The whole configuration."""

    receivers: ReceiversConfig
    metrics: MetricsConfig
    storage: StorageConfig
    keys: KeysConfig
    engine: EngineConfig | None = None
    """Required where there are models."""
    models: dict[Name, ModelConfig] = Field(default_factory=dict)
    trust: TrustTable
    policy: PolicyConfig
    routes: dict[Name, RouteConfig]
    sources: tuple[SourceConfig, ...]

    @classmethod
    def load(cls, path: Path) -> Config:
        """Read and check a configuration file.

        Raises:
            ConfigError: names every mistake by its dotted key, those between tables included.
        """
        document = _document(path)
        problems: list[str] = []
        try:
            # Through JSON, because there "strict" still takes text for a path and a list for a tuple.
            config = cls.model_validate_json(json.dumps(document, default=str), context={"root": path.parent})
        except ValidationError as error:
            problems = _sentences(error.errors(include_url=False))
        problems += mistakes_between_tables(document)
        if problems:
            raise ConfigError(problems)
        return config

    def policy_of(self, route: str) -> PolicyConfig:
        """The service policy that holds for a route: its own, else the global one."""
        return self.routes[route].policy or self.policy


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError([f"{path}: not TOML: {error}"]) from error


def _sentences(problems: list[ErrorDetails]) -> list[str]:
    """One for each mistake; a list whose items were refused is not called too short as well."""
    places = [problem["loc"] for problem in problems]
    sentences = []
    for problem in problems:
        place = problem["loc"]
        if problem["type"] == "too_short" and any(other[:-1] == place for other in places):
            continue
        key = ".".join(str(part) for part in place) or "the file"
        sentences.append(f"{key}: {problem['msg'].removeprefix('Value error, ')}")
    return sentences


def _loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
