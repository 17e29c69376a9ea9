"""The gateway's own private keys, read from their files and checked (architecture 5.8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.errors import ConfigError
from gateway.settings.storage import KeysConfig
from gateway.store.kek import KEY_BYTES, Kek, RawKek, load, secret
from signing import EnvelopeError, envelope

_NAMES_INFO = b"scanward quarantine names v1"
_DRIFT_INFO = b"scanward drift watch v1"
_REPLAY_INFO = b"scanward replay ledger v1"
_CUSTODY_INFO = b"scanward custody v1"


@dataclass(frozen=True, slots=True)
class Keys:
    """The gateway's private keys, read and checked."""

    receipt: Ed25519PrivateKey
    checkpoint: Ed25519PrivateKey
    retired_checkpoints: tuple[Ed25519PublicKey, ...]
    quarantine: Kek
    seed: bytes | None = field(repr=False)
    """Of the detectors that draw at random."""

    @classmethod
    def load(cls, config: KeysConfig) -> Self:
        """Read them; raises `ConfigError`."""
        keys = cls(
            _signing_key("keys.receipt", config.receipt),
            _signing_key("keys.checkpoint", config.checkpoint),
            tuple(_public_key("keys.retired_checkpoints", path) for path in config.retired_checkpoints),
            _kek("keys.quarantine", config.quarantine),
            None if config.seed is None else _secret("keys.seed", config.seed),
        )
        if keys.receipt.private_bytes_raw() == keys.checkpoint.private_bytes_raw():
            raise ConfigError(["keys.checkpoint: must be another key than keys.receipt"])
        if keys.seed is not None and RawKek(keys.seed).id == keys.quarantine.id:
            raise ConfigError(["keys.seed: must be another key than keys.quarantine"])
        return keys

    @property
    def checkpoints(self) -> tuple[Ed25519PublicKey, ...]:
        """Public halves of the present checkpoint key and of the retired ones."""
        return (self.checkpoint.public_key(), *self.retired_checkpoints)

    @property
    def quarantine_names(self) -> bytes:
        """Names held scans; derived, so that it is one key less to keep. A new quarantine key begins new names."""
        return self.quarantine.derive(_NAMES_INFO)

    @property
    def replay(self) -> bytes:
        """Hides instances and patients in the replay ledger; derived likewise."""
        return self.quarantine.derive(_REPLAY_INFO)

    @property
    def drift(self) -> bytes:
        """Hides patients in the drift watch; derived likewise."""
        return self.quarantine.derive(_DRIFT_INFO)

    @property
    def custody(self) -> Kek:
        """Wraps the data keys of scans that wait to be examined or handed on; derived likewise."""
        return RawKek(self.quarantine.derive(_CUSTODY_INFO))


def _signing_key(key: str, path: Path) -> Ed25519PrivateKey:
    try:
        return envelope.load_private_key(path)
    except EnvelopeError as error:
        raise ConfigError([f"{key}: {error}"]) from error


def _public_key(key: str, path: Path) -> Ed25519PublicKey:
    try:
        return envelope.load_public_key(path)
    except EnvelopeError as error:
        raise ConfigError([f"{key}: {error}"]) from error


def _kek(key: str, place: str) -> Kek:
    try:
        return load(place)
    except ConfigError as error:
        raise ConfigError([f"{key}: {problem}" for problem in error.problems]) from error


def _secret(key: str, path: Path) -> bytes:
    try:
        return secret(path.read_text("ascii"), str(path))
    except ConfigError as error:
        raise ConfigError([f"{key}: {problem}" for problem in error.problems]) from error
    except (OSError, UnicodeDecodeError):
        raise ConfigError([f"{key}: {path}: not {KEY_BYTES} bytes in hexadecimal"]) from None
