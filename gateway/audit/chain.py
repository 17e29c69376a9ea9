"""How records are bound into a chain, and what a signed checkpoint says about it.

Each entry's hash covers the hash before it, its own place and its bytes, so that an edit, a deletion, an insertion or
a change of order breaks every later hash. The chain starts from the log's own random name, so that no log can stand in
for another. A checkpoint signs the last hash: with one that was carried off the machine, a cut end is seen as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway import documents
from signing import envelope
from signing.errors import EnvelopeError

CHECKPOINT_TYPE = "application/vnd.scanward.audit-checkpoint+json"

_ORIGIN_DOMAIN = b"scanward audit origin v1\x00"
_ENTRY_DOMAIN = b"scanward audit entry v1\x00"


@dataclass(frozen=True, slots=True)
class Entry:
    """One record in its place."""

    index: int
    body: bytes
    """Canonical JSON (`record.body`)."""
    hash: bytes
    """32 bytes: `link` of the entry before, the index and the body."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: how many entries there are, and the hash of the last."""

    size: int
    hash: bytes

    def next(self, body: bytes) -> Entry:
        """The entry that puts `body` at this end."""
        return Entry(self.size, body, link(self.hash, self.size, body))

    def after(self, entry: Entry) -> Head:
        """The end once `entry` is there."""
        return Head(entry.index + 1, entry.hash)


def start(origin: str) -> Head:
    """The empty chain of the log of that name."""
    return Head(0, hashlib.sha256(_ORIGIN_DOMAIN + origin.encode()).digest())


def link(before: bytes, index: int, body: bytes) -> bytes:
    """SHA-256 over domain, hash before (32 bytes), place (8 bytes, big endian) and body."""
    return hashlib.sha256(_ENTRY_DOMAIN + before + index.to_bytes(8, "big") + body).digest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed statement that the log of this origin had this size and this last hash."""

    origin: str
    size: int
    root: str
    """Hash of the last entry, lower-case hexadecimal."""
    time: str
    """RFC 3339, UTC."""

    def sign(self, key: Ed25519PrivateKey) -> bytes:
        """The DSSE envelope (JSON) that carries it."""
        document = {"origin": self.origin, "size": self.size, "root": self.root, "time": self.time}
        return envelope.seal(documents.canonical(document), CHECKPOINT_TYPE, key)

    @classmethod
    def open(cls, sealed: bytes, keys: Sequence[Ed25519PublicKey]) -> Checkpoint:
        """Read an envelope; raises EnvelopeError where none of `keys` signed it or it is no checkpoint."""
        payload = envelope.open_envelope(sealed, keys, CHECKPOINT_TYPE)
        try:
            document = json.loads(payload)
            origin, size, root, time = (document[name] for name in ("origin", "size", "root", "time"))
        except (ValueError, KeyError, TypeError):
            raise EnvelopeError("the payload is no checkpoint") from None
        if not (isinstance(origin, str) and isinstance(size, int) and isinstance(root, str) and isinstance(time, str)):
            raise EnvelopeError("the payload is no checkpoint")
        return cls(origin, size, root, time)
