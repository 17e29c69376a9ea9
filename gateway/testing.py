"""A real gateway for tests, demonstrations and benchmarks: its keys, and a process of its own that can be watched."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID

from gateway.settings.limits import LimitsConfig
from signing.testing import Hospital

START_S_MAX = 180.0
"""For a gateway to say that it is ready: loading the detectors on a slow machine."""

_TAIL_BYTES = 4000
_POLL_S = 0.02


class GatewayFailed(RuntimeError):  # noqa: N818 - what it says
    """The process ended, or never became ready; holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a gateway listens, as its ready file says."""

    grpc: str
    metrics: str
    dimse: str | None = None
    http: str | None = None


class GatewayProcess:
    """`scanward serve` on a configuration, as a user would start it; stopped when the `with` block is left."""

    def __init__(
        self,
        config: Path,
        *,
        log: Path | None = None,
        environment: dict[str, str] | None = None,
        under: Sequence[str] = (),
    ) -> None:
        """`log`: gets stderr; without it a file that goes away. `environment` adds to this process's own.

        `under`: a command that becomes the gateway, such as one that confines it first.
        """
        self._config = config
        self._under = under
        self._log_path = log
        self._environment = {**os.environ, **(environment or {})}
        self._log: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._addresses: Addresses | None = None

    def __enter__(self) -> Self:
        self._log = self._log_path.open("ab+") if self._log_path else tempfile.TemporaryFile()
        with tempfile.TemporaryDirectory() as directory:
            ready = Path(directory, "ready.json")
            command = [*self._under, sys.executable, "-m", "gateway.cli", "serve", "--config", str(self._config)]
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [*command, "--ready-file", str(ready)], stdout=self._log, stderr=self._log, env=self._environment
            )
            try:
                self._addresses = self._wait_for(ready)
            except BaseException:
                self.__exit__(None, None, None)
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    @property
    def addresses(self) -> Addresses:
        """Where it listens."""
        assert self._addresses is not None, "not started"
        return self._addresses

    @property
    def pid(self) -> int:
        """Of the gateway itself; the detection worker is a child of it."""
        assert self._process is not None, "not started"
        return self._process.pid

    def stop(self) -> int:
        """Ask it to stop as an orchestrator would (SIGTERM); returns the exit code once it is gone."""
        assert self._process is not None, "not started"
        self._process.terminate()
        return self._process.wait(120)

    def kill(self) -> None:
        """End it without a warning (SIGKILL), as a power cut of the process would."""
        assert self._process is not None, "not started"
        self._process.kill()
        self._process.wait()

    def reload(self) -> None:
        """Ask it to read its configuration again (SIGHUP)."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGHUP)

    def log(self) -> str:
        """What it has written to its log so far."""
        if self._log is None:
            return ""
        here = self._log.tell()
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        self._log.seek(here)
        return text

    def peak_bytes(self) -> dict[int, int]:
        """Peak resident memory (VmHWM) by process id, of the gateway and all its descendants that live."""
        return {pid: peak for pid in _family(self.pid) if (peak := _peak_bytes(pid))}

    def _wait_for(self, ready: Path) -> Addresses:
        assert self._process is not None
        give_up_at = time.monotonic() + START_S_MAX
        while not ready.exists():
            if self._process.poll() is not None:
                raise GatewayFailed(f"exit code {self._process.returncode}: {self.log()[-_TAIL_BYTES:]}")
            if time.monotonic() > give_up_at:
                raise GatewayFailed(f"not ready after {START_S_MAX:.0f} s: {self.log()[-_TAIL_BYTES:]}")
            time.sleep(_POLL_S)
        found = json.loads(ready.read_text())
        return Addresses(found["grpc"], found["metrics"], found["dimse"], found["http"])


@dataclass(frozen=True, slots=True)
class Site:
    """A small hospital's folder: certificates, keys, tokens, trust policies and a configuration that can be served."""

    directory: Path
    hospital: Hospital
    tokens: Mapping[str, str]
    """Bearer token of each source."""

    @property
    def config(self) -> Path:
        """The configuration file."""
        return self.directory / "scanward.toml"

    @classmethod
    def make(cls, directory: Path, *, tables: str = "", routes: Sequence[str] = ()) -> Self:
        """Write it, with two routes that examine signatures alone, and five sources.

        `strict` rejects what is unsigned, `open` admits it. `scanner` submits, `reviewer` submits and reviews,
        `enrolled` signs all it sends; `auditor` and `administrator` have those roles alone.

        Args:
            directory: made if missing; relative paths in `tables` start here.
            tables: more of the configuration, such as an engine, a model and its routes.
            routes: names of routes in `tables`, for every source.
        """
        directory.mkdir(parents=True, exist_ok=True)
        write_keys(directory / "keys")
        tokens = {name: write_token(directory / "tokens" / name) for name in _SOURCES}
        hospital = Hospital.make(directory / "pki")
        for word in ("reject", "unsafe_admit"):
            (directory / f"{word}.toml").write_text(f'unsigned = "{word}"\n')
        names = json.dumps(["strict", "open", *routes])
        sources = "".join(
            f'[[sources]]\nname = "{name}"\nroles = {json.dumps(roles)}\ntoken_file = "tokens/{name}"\n'
            f"enrolled = {str(name == 'enrolled').lower()}\nroutes = {names}\n"
            for name, roles in _SOURCES.items()
        )
        (directory / "scanward.toml").write_text(
            _CONFIGURATION.replace("LIMITS", _inline(WIDE_LIMITS)) + tables + "\n" + sources
        )
        return cls(directory, hospital, tokens)

    def copy(self, directory: Path, *, more: str = "") -> Self:
        """The same site in another folder, with nothing that was stored, and with more of the configuration."""
        shutil.copytree(self.directory, directory, ignore=shutil.ignore_patterns("data"))
        with (directory / "scanward.toml").open("a") as file:
            file.write(more)
        return replace(self, directory=directory)


WIDE_LIMITS = LimitsConfig(
    scans_per_s=1e6, scans_burst=1_000_000, bytes_per_s=1e12, bytes_burst=1 << 40,
    holds_per_hour=1e9, holds_burst=1_000_000, calls_share=1.0, spool_share=1.0,
)  # fmt: skip
"""Limits that no test reaches that does not mean to."""

_SOURCES = {
    "scanner": ["submit"],
    "reviewer": ["submit", "review"],
    "enrolled": ["submit"],
    "auditor": ["audit"],
    "administrator": ["admin"],
}
_CONFIGURATION = """
[receivers.grpc]
address = "127.0.0.1:0"
unsafe_plaintext = true
threads = 8
concurrent_calls_max = 32
[metrics]
address = "127.0.0.1:0"
[storage]
directory = "data"
spool_bytes_max = 1073741824
quarantine_bytes_max = 1073741824
[keys]
receipt = "keys/receipt.pem"
checkpoint = "keys/checkpoint.pem"
quarantine = "keys/quarantine.key"
seed = "keys/seed.key"
[trust.strict]
policy = "reject.toml"
roots = ["pki/root.pem"]
intermediates = ["pki/intermediate.pem"]
crls = ["pki/root.crl", "pki/intermediate.crl"]
[trust.open]
policy = "unsafe_admit.toml"
roots = ["pki/root.pem"]
intermediates = ["pki/intermediate.pem"]
crls = ["pki/root.crl", "pki/intermediate.crl"]
[limits]
default = LIMITS
[policy]
indeterminate = "quarantine"
unexaminable = "quarantine"
signature = { failed = "reject", unsigned = "unsafe_admit", stripped = "reject" }
[routes.strict]
trust = "strict"
upstream = "none"
[routes.open]
trust = "open"
upstream = "none"
"""


def _inline(table: LimitsConfig) -> str:
    """As a TOML inline table."""
    return "{ " + ", ".join(f"{key} = {value}" for key, value in table.model_dump().items()) + " }"


def write_keys(directory: Path) -> None:
    """Make the gateway's keys as [keys] names them, with the public halves of the signing ones beside (`.pub`)."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in ("receipt", "checkpoint"):
        write_signing_key(directory / f"{name}.pem")
    for name in ("quarantine", "seed"):
        write_secret(directory / f"{name}.key", secrets.token_hex(32).encode())


def write_signing_key(path: Path) -> Ed25519PrivateKey:
    """An Ed25519 key in a PEM file of mode 0600, its public half in a file with the suffix `.pub`."""
    key = Ed25519PrivateKey.generate()
    write_secret(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.with_suffix(".pub").write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return key


def write_certificate(
    folder: Path, name: str, issuer: tuple[x509.Certificate, EllipticCurvePrivateKey] | None
) -> tuple[x509.Certificate, EllipticCurvePrivateKey]:
    """A TLS certificate for 127.0.0.1 and its key, `NAME.pem` and `NAME.key`; without an issuer an authority's."""
    key = generate_private_key(SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=2))
        .add_extension(x509.BasicConstraints(issuer is None, None), critical=True)
        .add_extension(address, critical=False)
        .sign(issuer[1] if issuer else key, SHA256())
    )
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    write_secret(folder / f"{name}.key", key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return certificate, key


def write_token(path: Path) -> str:
    """A new bearer token in a file of mode 0600."""
    token = secrets.token_hex(32)
    write_secret(path, token.encode())
    return token


def write_secret(path: Path, secret: bytes) -> None:
    """A file that nobody else could ever read, not even for the moment before a chmod."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secret)


def _family(pid: int) -> list[int]:
    """The process and all that descend from it; each thread has children of its own."""
    members = [pid]
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            members += [member for child in listed.read_text().split() for member in _family(int(child))]
    return members


def _peak_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
