"""The key-encryption key of the quarantine: from a file or the environment, or inside a PKCS #11 token."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gateway.errors import ConfigError, GatewayError
from signing import SignError
from signing.pkcs11_uri import Pkcs11Uri

if TYPE_CHECKING:
    import pkcs11

KEY_BYTES = 32
ID_BYTES = 8
TAG_BYTES = 16
TOKEN, ENVIRONMENT = "pkcs11:", "env:"
"""What a key's place begins with where it is no file."""

_ID_INFO = b"scanward kek id v1"


class VaultError(GatewayError):
    """A stored object cannot be opened: another key, another place, or changed bytes."""

    permanent = True


class Kek(Protocol):
    """Wraps data keys, and gives the secrets that are derived from it; safe to use from many threads."""

    @property
    def id(self) -> bytes:
        """8 bytes that tell it from other keys and say nothing of it."""
        ...

    def wrap(self, data_key: bytes, nonce: bytes, context: bytes) -> bytes:
        """AES-256-GCM of 32 bytes under a nonce of 12: 48 bytes; random nonces are safe for the first 2^32 objects
        (NIST SP 800-38D, 8.3).

        Raises:
            OSError: the token fails.
        """
        ...

    def unwrap(self, wrapped: bytes, nonce: bytes, context: bytes) -> bytes:
        """The data key again.

        Raises:
            VaultError: wrapped otherwise, or the token fails.
        """
        ...

    def derive(self, info: bytes) -> bytes:
        """32 bytes for one use, the same each time."""
        ...


@dataclass(frozen=True, slots=True)
class RawKek:
    """A key that this process holds; derives by HKDF-SHA-256 (RFC 5869)."""

    key: bytes = field(repr=False)
    """32 bytes."""

    def __post_init__(self) -> None:
        if len(self.key) != KEY_BYTES:
            raise ConfigError([f"a key-encryption key must have {KEY_BYTES} bytes"])

    @property
    def id(self) -> bytes:
        """See `Kek.id`."""
        return hashlib.sha256(_ID_INFO + b"\x00" + self.key).digest()[:ID_BYTES]

    def wrap(self, data_key: bytes, nonce: bytes, context: bytes) -> bytes:
        """See `Kek.wrap`."""
        return AESGCM(self.key).encrypt(nonce, data_key, context)

    def unwrap(self, wrapped: bytes, nonce: bytes, context: bytes) -> bytes:
        """See `Kek.unwrap`."""
        try:
            return AESGCM(self.key).decrypt(nonce, wrapped, context)
        except InvalidTag:
            raise VaultError("the sealed object was changed or moved") from None

    def derive(self, info: bytes) -> bytes:
        """See `Kek.derive`."""
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(self.key)


class TokenKek:
    """An AES-256 key inside a PKCS #11 token, which it never leaves.

    It wraps by CKM_AES_GCM, and derives by AES-CMAC in counter mode (NIST SP 800-108r1, 4.1; the label is the use).
    """

    def __init__(self, key: pkcs11.SecretKey) -> None:
        import pkcs11  # noqa: PLC0415  an extra: most keep the key in a file

        self._key: Any = key
        self._mechanism, self._gcm = pkcs11.Mechanism, pkcs11.GCMParams
        self._failure = pkcs11.exceptions.PKCS11Error
        self._lock = threading.Lock()
        self.id = self.derive(_ID_INFO)[:ID_BYTES]

    @classmethod
    def open(cls, uri: str) -> TokenKek:
        """Find the key that an RFC 7512 URI names, in a session that lasts as long as the process.

        Raises:
            SignError: python-pkcs11 is not installed, module, token, PIN or key are not as said, or the key is none
                that can only be used inside the token.
        """
        return _opened(Pkcs11Uri.parse(uri, kind="secret-key"))

    def wrap(self, data_key: bytes, nonce: bytes, context: bytes) -> bytes:
        """See `Kek.wrap`."""
        try:
            with self._lock:
                return bytes(self._key.encrypt(data_key, **self._how(nonce, context)))
        except self._failure as error:
            raise OSError(errno.EIO, f"the PKCS #11 token failed with {type(error).__name__}") from error

    def unwrap(self, wrapped: bytes, nonce: bytes, context: bytes) -> bytes:
        """See `Kek.unwrap`."""
        try:
            with self._lock:
                return bytes(self._key.decrypt(wrapped, **self._how(nonce, context)))
        except self._failure as error:
            name = type(error).__name__
            raise VaultError(f"the sealed object was changed or moved, or the token failed ({name})") from None

    def derive(self, info: bytes) -> bytes:
        """See `Kek.derive`."""
        label = info + b"\x00" + (8 * KEY_BYTES).to_bytes(4, "big")
        with self._lock:
            blocks = [
                bytes(self._key.sign(counter.to_bytes(4, "big") + label, mechanism=self._mechanism.AES_CMAC))
                for counter in (1, 2)
            ]
        return b"".join(blocks)

    def _how(self, nonce: bytes, context: bytes) -> dict[str, Any]:
        return {
            "mechanism": self._mechanism.AES_GCM,
            "mechanism_param": self._gcm(nonce, context, 8 * TAG_BYTES),
        }


def load(place: str) -> Kek:
    """The key at a place: `pkcs11:…`, `env:NAME`, or a file; the last two hold 32 bytes in hexadecimal.

    Raises:
        ConfigError: there is no such key there.
    """
    if place.startswith(TOKEN):
        try:
            return TokenKek.open(place)
        except SignError as error:
            raise ConfigError([str(error)]) from error
    if place.startswith(ENVIRONMENT):
        return RawKek(secret(os.environ.get(place.removeprefix(ENVIRONMENT), ""), place))
    try:
        return RawKek(secret(Path(place).read_text("ascii"), place))
    except (OSError, UnicodeDecodeError):
        raise ConfigError([f"{place}: not {KEY_BYTES} bytes in hexadecimal"]) from None


def secret(text: str, place: str) -> bytes:
    """32 bytes from hexadecimal; raises `ConfigError`, which never shows them."""
    try:
        found = bytes.fromhex(text.strip())
    except ValueError:
        raise ConfigError([f"{place}: not {KEY_BYTES} bytes in hexadecimal"]) from None
    if len(found) != KEY_BYTES:
        raise ConfigError([f"{place}: {len(found)} bytes, not {KEY_BYTES}"])
    return found


@cache
def _opened(named: Pkcs11Uri) -> TokenKek:
    """One object for each key, however often a configuration is read."""
    try:
        import pkcs11  # noqa: PLC0415  as above
    except ImportError as error:
        raise SignError("keys in hardware need python-pkcs11 (pip install 'scanward[pkcs11]')") from error
    try:
        session = _session(named.module, named.token, named.serial, named.pin)
    except (pkcs11.exceptions.PKCS11Error, RuntimeError) as error:
        raise SignError(f"PKCS #11 token: {type(error).__name__} {error}".rstrip()) from error
    try:
        key = session.get_key(object_class=pkcs11.ObjectClass.SECRET_KEY, label=named.label, id=named.id)
        assert isinstance(key, pkcs11.SecretKey)
        if key.key_type is not pkcs11.KeyType.AES or key.key_length != 8 * KEY_BYTES:
            raise SignError("PKCS #11 key: an AES key of 256 bits is needed")
        if key[pkcs11.Attribute.EXTRACTABLE]:
            raise SignError("PKCS #11 key: it can be taken out of the token; make one that cannot (CKA_EXTRACTABLE)")
        return TokenKek(key)
    except pkcs11.exceptions.PKCS11Error as error:
        raise SignError(f"PKCS #11 key: {type(error).__name__} {error}".rstrip()) from error


@cache
def _session(module: str, label: str | None, serial: bytes | None, pin: str | None) -> pkcs11.Session:
    """One login for each token: it takes no second one of a process."""
    import pkcs11  # noqa: PLC0415  as above

    return pkcs11.lib(module).get_token(token_label=label, token_serial=serial).open(user_pin=pin)
