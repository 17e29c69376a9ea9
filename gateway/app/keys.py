"""The gateway's own private keys, read from their files and checked (architecture 5.8)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.errors import ConfigError
from gateway.settings.storage import KeysConfig
from signing import EnvelopeError, envelope

KEY_BYTES = 32
"""Of the quarantine's key, AES-256, and of the seed key, HMAC-SHA-256."""

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
    quarantine: bytes = field(repr=False)
    seed: bytes | None = field(repr=False)
    """Of the detectors that draw at random."""

    @classmethod
    def load(cls, config: KeysConfig) -> Self:
        """Read them; raises `ConfigError`."""
        keys = cls(
            _signing_key("keys.receipt", config.receipt),
            _signing_key("keys.checkpoint", config.checkpoint),
            tuple(_public_key("keys.retired_checkpoints", path) for path in config.retired_checkpoints),
            _secret("keys.quarantine", config.quarantine),
            None if config.seed is None else _secret("keys.seed", config.seed),
        )
        if keys.receipt.private_bytes_raw() == keys.checkpoint.private_bytes_raw():
            raise ConfigError(["keys.checkpoint: must be another key than keys.receipt"])
        if keys.seed == keys.quarantine:
            raise ConfigError(["keys.seed: must be another key than keys.quarantine"])
        return keys

    @property
    def checkpoints(self) -> tuple[Ed25519PublicKey, ...]:
        """Public halves of the present checkpoint key and of the retired ones."""
        return (self.checkpoint.public_key(), *self.retired_checkpoints)

    @property
    def quarantine_names(self) -> bytes:
        """Names held scans; derived, so that it is one key less to keep. A new quarantine key begins new names."""
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=_NAMES_INFO).derive(self.quarantine)

    @property
    def replay(self) -> bytes:
        """Hides instances and patients in the replay ledger; derived likewise."""
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=_REPLAY_INFO).derive(self.quarantine)

    @property
    def drift(self) -> bytes:
        """Hides patients in the drift watch; derived likewise."""
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=_DRIFT_INFO).derive(self.quarantine)

    @property
    def custody(self) -> bytes:
        """Wraps the data keys of scans that wait to be examined or handed on; derived likewise."""
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=_CUSTODY_INFO).derive(self.quarantine)


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


def _secret(key: str, path: Path) -> bytes:
    try:
        secret = bytes.fromhex(path.read_text("ascii").strip())
    except (OSError, ValueError):
        raise ConfigError([f"{key}: {path}: not {KEY_BYTES} bytes in hexadecimal"]) from None
    if len(secret) != KEY_BYTES:
        raise ConfigError([f"{key}: {path}: {len(secret)} bytes, not {KEY_BYTES}"])
    return secret
