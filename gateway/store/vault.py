"""Encryption of one stored object: a data key of its own, wrapped by the KEK, and chunks that cannot be reordered.

Layout: `MAGIC | KEK id (8) | wrap nonce (12) | wrapped key (32 + 16) | nonce prefix (7) | chunk…`. The data key is
AES-256-GCM under the KEK. Chunks are AES-256-GCM under the data key with the nonce `prefix | counter (4) | last (1)`
(the STREAM construction, Hoang et al. 2015, https://eprint.iacr.org/2015/189): a chunk that was dropped, moved or
repeated, or an end that was cut off, does not decrypt. Every part carries the caller's context as associated data.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gateway.store.kek import ID_BYTES, KEY_BYTES, TAG_BYTES, Kek, VaultError

CHUNK_BYTES = 1 << 20

_MAGIC = b"SWVAULT1"
_KEK_ID_BYTES = ID_BYTES
_NONCE_BYTES = 12
_TAG_BYTES = TAG_BYTES
_WRAPPED_BYTES = KEY_BYTES + _TAG_BYTES
_PREFIX_BYTES = 7
_HEADER_BYTES = len(_MAGIC) + _KEK_ID_BYTES + _NONCE_BYTES + _WRAPPED_BYTES + _PREFIX_BYTES


@dataclass(frozen=True, slots=True)
class Vault:
    """Seals and opens objects under one key-encryption key."""

    kek: Kek = field(repr=False)

    def seal(self, data: memoryview, context: bytes, out: IO[bytes]) -> None:
        """Write `data` encrypted; holds one chunk at a time. `context` must be given again to open it."""
        data_key = AESGCM.generate_key(KEY_BYTES * 8)
        wrap_nonce, prefix = os.urandom(_NONCE_BYTES), os.urandom(_PREFIX_BYTES)
        wrapped = self.kek.wrap(data_key, wrap_nonce, _MAGIC + context)
        out.write(_MAGIC + self.kek.id + wrap_nonce + wrapped + prefix)
        cipher = AESGCM(data_key)
        last = max(0, len(data) - 1) // CHUNK_BYTES
        for counter in range(last + 1):
            chunk = data[counter * CHUNK_BYTES : (counter + 1) * CHUNK_BYTES]
            out.write(cipher.encrypt(_nonce(prefix, counter, last=counter == last), chunk, context))

    def open(self, source: IO[bytes], context: bytes) -> Iterator[bytes]:
        """The data, chunk by chunk; a chunk is given out only once it is authentic.

        Raises:
            VaultError: while iterating, at the first thing that is not as it was sealed.
        """
        header = source.read(_HEADER_BYTES)
        if len(header) != _HEADER_BYTES or not header.startswith(_MAGIC):
            raise VaultError("not a sealed object")
        rest = header[len(_MAGIC) :]
        kek_id, rest = rest[:_KEK_ID_BYTES], rest[_KEK_ID_BYTES:]
        wrap_nonce, rest = rest[:_NONCE_BYTES], rest[_NONCE_BYTES:]
        wrapped, prefix = rest[:_WRAPPED_BYTES], rest[_WRAPPED_BYTES:]
        if not hmac.compare_digest(kek_id, self.kek.id):
            raise VaultError("sealed under another key")
        try:
            cipher = AESGCM(self.kek.unwrap(wrapped, wrap_nonce, _MAGIC + context))
            counter = 0
            chunk = source.read(CHUNK_BYTES + _TAG_BYTES)
            while True:
                following = source.read(CHUNK_BYTES + _TAG_BYTES)
                yield cipher.decrypt(_nonce(prefix, counter, last=not following), chunk, context)
                if not following:
                    return
                chunk, counter = following, counter + 1
        except InvalidTag:
            raise VaultError("the sealed object was changed or moved") from None


def sealed_bytes(size: int) -> int:
    """How large a sealed object of `size` bytes is."""
    return _HEADER_BYTES + size + _TAG_BYTES * (max(0, size - 1) // CHUNK_BYTES + 1)


def _nonce(prefix: bytes, counter: int, *, last: bool) -> bytes:
    return prefix + counter.to_bytes(4, "big") + bytes([last])
