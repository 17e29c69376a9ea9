"""Signed checkpoints: a signed note (C2SP tlog-checkpoint) that says how large a log was and what its root was.

Plain text that `openssl` can check, and that the witnesses and tools of other transparency logs can read:

    scanward-audit/6f0c…                    origin: the log's own random name
    4711                                    records
    3vW0…=                                  root of the Merkle tree, base64
    time 2026-05-04T12:00:00Z               when it was signed

    — scanward-audit/6f0c… Az3grl…=         origin, then base64 of 4 bytes of key id and 64 of Ed25519
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway.audit.tree import HASH_BYTES, SIZE_MAX
from gateway.errors import GatewayError

NOTE_BYTES_MAX = 65536

_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_SIGNATURES_MAX = 32
"""Witnesses may have added theirs; the log's own must be among the first so many."""
_BODY = re.compile(
    r"(?P<origin>[^\n\s+]+)\n(?P<size>0|[1-9]\d{0,14})\n(?P<root>[A-Za-z0-9+/=]{44})\n(?P<rest>(?:[^\n]+\n)*)"
)
_TIME = "time "


class CheckpointError(GatewayError):
    """What should be a checkpoint is none that one of the keys signed."""

    permanent = True


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A statement that the log of this origin had this size and this root."""

    origin: str
    size: int
    root: bytes
    """32 bytes."""
    time: str
    """RFC 3339, UTC; empty where the note does not say."""

    @property
    def text(self) -> bytes:
        """What is signed."""
        root = base64.b64encode(self.root).decode()
        return f"{self.origin}\n{self.size}\n{root}\n{_TIME}{self.time}\n".encode()

    def sign(self, key: Ed25519PrivateKey) -> bytes:
        """The signed note that carries it."""
        signature = base64.b64encode(_key_id(self.origin, key.public_key()) + key.sign(self.text)).decode()
        return self.text + f"\n— {self.origin} {signature}\n".encode()

    @classmethod
    def open(cls, note: bytes, keys: Sequence[Ed25519PublicKey]) -> Checkpoint:
        """Read a note; raises `CheckpointError` where none of `keys` signed it or it is no checkpoint."""
        text, signatures = _parted(note)
        body = _BODY.fullmatch(text)
        if body is None or int(body["size"]) > SIZE_MAX:
            raise CheckpointError("not a checkpoint")
        origin = body["origin"]
        if not any(_signed(text.encode(), origin, key, signatures) for key in keys):
            raise CheckpointError("signed by none of the known keys, or altered")
        times = [line.removeprefix(_TIME) for line in body["rest"].splitlines() if line.startswith(_TIME)]
        return cls(origin, int(body["size"]), _decoded(body["root"], HASH_BYTES), times[0] if times else "")


def _parted(note: bytes) -> tuple[str, list[tuple[str, bytes]]]:
    """The signed text, and the name and bytes of each signature; nothing of it is to be believed yet."""
    if len(note) > NOTE_BYTES_MAX:
        raise CheckpointError(f"a note of {len(note)} bytes")
    try:
        text, blank, tail = note.decode("utf-8").rpartition("\n\n")
    except UnicodeDecodeError:
        raise CheckpointError("not a signed note") from None
    lines = tail.removesuffix("\n").split("\n")
    if not blank or len(lines) > _SIGNATURES_MAX:
        raise CheckpointError("not a signed note")
    signatures = []
    for line in lines:
        dash, _, named = line.partition(" ")
        name, _, encoded = named.partition(" ")
        if dash != "—" or not name or not encoded:
            raise CheckpointError("not a signed note")
        signatures.append((name, _decoded(encoded)))
    return text + "\n", signatures


def _signed(text: bytes, origin: str, key: Ed25519PublicKey, signatures: Sequence[tuple[str, bytes]]) -> bool:
    identifier = _key_id(origin, key)
    for name, signature in signatures:
        if name == origin and signature.startswith(identifier):
            try:
                key.verify(signature[_KEY_ID_BYTES:], text)
            except InvalidSignature:
                continue
            return True
    return False


def _key_id(name: str, key: Ed25519PublicKey) -> bytes:
    """First bytes of SHA-256 over name, line feed, signature type and public key (C2SP signed-note)."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + key.public_bytes_raw()).digest()[:_KEY_ID_BYTES]


def _decoded(text: str, size: int | None = None) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise CheckpointError("not a signed note") from None
    if size is not None and len(data) != size:
        raise CheckpointError("not a checkpoint")
    return data
