"""The public keys of one identity provider: read or fetched outside of calls, bounded in size, time and age."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from gateway.errors import ConfigError
from gateway.fetching import FetchError, fetch
from gateway.settings.oidc import OidcConfig

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

_BYTES_MAX = 256 << 10
_KEYS_MAX = 64
_FETCH_S_MAX = 10.0
_REFRESH_S = 3600.0
_ASKED_S = 60.0
"""Between two fetches, however often a token names a key that is not there: strangers must not drive the fetching."""
_RSA_BITS = range(2048, 8193)
"""Below it is weak, above it a verification takes too long."""
_CURVES = {"ES256": "secp256r1", "ES384": "secp384r1", "ES512": "secp521r1"}

_log = structlog.get_logger(__name__)


class JwksError(ValueError):
    """The document holds no keys that could be used; says why."""


@dataclass(frozen=True, slots=True)
class Key:
    """One public key."""

    public: PublicKey
    algorithm: str | None
    """The only one that it is for, where the provider says so."""

    def serves(self, algorithm: str) -> bool:
        """Whether a signature of that algorithm can be one of this key."""
        if self.algorithm not in (None, algorithm):
            return False
        match self.public:
            case RSAPublicKey():
                return algorithm.startswith(("RS", "PS"))
            case EllipticCurvePublicKey():
                return _CURVES.get(algorithm) == self.public.curve.name
            case _:
                return algorithm == "EdDSA"


class KeySet:
    """The keys that are believed now; calls only look, `look` is for a thread of its own."""

    def __init__(self, name: str, config: OidcConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file; a URL is not asked yet. Raises `ConfigError`."""
        self._name = name
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()
        self._keys: Mapping[str, Key] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._asked = False
        self._seen: tuple[int, int, int] | None = None
        if config.jwks_file is not None:
            self._seen = _state(config.jwks_file)
            try:
                self._keys = parse(_read(config.jwks_file))
            except JwksError as error:
                raise ConfigError([f"oidc.{name}.jwks_file: {error}"]) from error

    def find(self, kid: str) -> Key | None:
        """The key of that id; one that is not there is asked for, and may be there for a later call."""
        with self._lock:
            if self._config.jwks_url is not None and (
                self._fetched_at is None or self._clock() - self._fetched_at > self._config.jwks_s_max
            ):
                return None
            key = self._keys.get(kid)
            self._asked |= key is None
            return key

    def look(self) -> None:
        """Read or fetch the keys where that is due; what cannot be read leaves the old ones."""
        try:
            if self._config.jwks_file is not None:
                if (state := _state(self._config.jwks_file)) == self._seen:
                    return
                self._seen = state
                keys = parse(_read(self._config.jwks_file))
            else:
                if not self._due():
                    return
                keys = parse(self._fetch())
        except (JwksError, FetchError, OSError) as error:  # the last: certificates that cannot be read
            _log.error("identity_keys_refused", source=self._name, error=type(error).__name__)
            return
        with self._lock:
            self._keys, self._fetched_at, self._asked = keys, self._clock(), False
        _log.info("identity_keys_taken", source=self._name, count=len(keys))

    def adopt(self, before: KeySet) -> None:
        """Take over what another one of the same configuration knows, so that a reload forgets no keys."""
        if before._config == self._config:
            self._keys, self._fetched_at, self._tried_at = before._keys, before._fetched_at, before._tried_at

    def _due(self) -> bool:
        now = self._clock()
        with self._lock:
            fetched, tried = self._fetched_at, self._tried_at
            wanted = self._asked or fetched is None or now - fetched >= _REFRESH_S
            if not wanted or (tried is not None and now - tried < _ASKED_S):
                return False
            self._tried_at = now
            return True

    def _fetch(self) -> bytes:
        assert self._config.jwks_url is not None
        context = ssl.create_default_context(cafile=self._config.jwks_ca)
        return fetch(
            self._config.jwks_url, bytes_max=_BYTES_MAX, seconds_max=_FETCH_S_MAX, tls=context, redirects=False
        )


def parse(document: bytes) -> Mapping[str, Key]:
    """The keys of a JWK set by id; those that cannot verify signatures are left out. Raises `JwksError`."""
    try:
        listed = json.loads(document)["keys"]
        if not isinstance(listed, list) or len(listed) > _KEYS_MAX:
            raise JwksError(f"`keys` must be a list of {_KEYS_MAX} at most")
        keys = {each["kid"]: key for each in listed if (key := _key(each)) is not None}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise JwksError("not a JWK set (RFC 7517)") from error
    if not keys:
        raise JwksError("holds no public key with an id that is made for signatures")
    return keys


def _key(each: dict[str, Any]) -> Key | None:
    """None for a key that is none of ours: a shared secret, one for encryption, a weak one, one without an id."""
    if each.get("kty") not in ("RSA", "EC", "OKP") or each.get("use", "sig") != "sig" or "d" in each:
        return None
    if "verify" not in each.get("key_ops", ["verify"]) or not isinstance(each.get("kid"), str):
        return None
    try:
        public = jwt.PyJWK(each).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    if not isinstance(public, PublicKey) or (isinstance(public, RSAPublicKey) and public.key_size not in _RSA_BITS):
        return None
    return Key(public, each.get("alg"))


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_BYTES_MAX + 1)
    except OSError as error:
        raise JwksError(error.strerror or type(error).__name__) from error
    if len(content) > _BYTES_MAX:
        raise JwksError(f"larger than {_BYTES_MAX} bytes")
    return content


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
