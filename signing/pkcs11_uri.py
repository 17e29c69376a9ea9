"""PKCS #11 URIs (RFC 7512): which key, in which token, behind which module, and where its PIN is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from signing.errors import SignError

MODULE_VARIABLE = "SCANWARD_PKCS11_MODULE"
PIN_VARIABLE = "SCANWARD_PKCS11_PIN"

_PIN_BYTES_MAX = 1024
_PATH_KEYS = frozenset(("token", "manufacturer", "serial", "model", "object", "id", "type"))
_QUERY_KEYS = frozenset(("module-path", "pin-source"))
_KNOWN_BUT_UNUSED = frozenset(("library-manufacturer", "library-version", "library-description", "slot-id"))
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class Pkcs11Uri:
    """What the URI says, and what the environment adds."""

    module: str
    """Path of the PKCS #11 library: `module-path`, else the variable SCANWARD_PKCS11_MODULE."""
    token: str | None
    serial: bytes | None
    label: str | None
    """Of the key: `object`."""
    id: bytes | None
    """Of the key, CKA_ID."""
    pin: str | None
    """From the file that `pin-source` names, else from SCANWARD_PKCS11_PIN; never from the URI itself."""

    @classmethod
    def parse(cls, uri: str, kind: str = "private") -> Pkcs11Uri:
        """Read a URI such as `pkcs11:token=hospital;object=ct?pin-source=file:/run/secrets/pin`, which names a key of a
        kind: `private`, or `secret-key`.

        Raises:
            SignError: not such a URI, naming no key, or with a PIN in it.
        """
        if not uri.startswith("pkcs11:") or _ESCAPE.search(uri):
            raise SignError("not a PKCS #11 URI: it must begin with pkcs11: and be percent-encoded")
        path, _, query = uri.removeprefix("pkcs11:").partition("?")
        where = _attributes(path, ";", _PATH_KEYS)
        how = _attributes(query, "&", _QUERY_KEYS)
        if where.get("type", kind) != kind:
            raise SignError(f"PKCS #11 URI: type must be {kind}, since such a key is needed")
        if not where.keys() & {"object", "id"}:
            raise SignError("PKCS #11 URI: names no key; give object or id")
        module = unquote(how.get("module-path", "")) or os.environ.get(MODULE_VARIABLE, "")
        if not module:
            raise SignError(f"PKCS #11 URI: no module-path, and {MODULE_VARIABLE} is not set")
        return cls(
            module,
            unquote(where["token"]) if "token" in where else None,
            unquote_to_bytes(where["serial"]) if "serial" in where else None,
            unquote(where["object"]) if "object" in where else None,
            unquote_to_bytes(where["id"]) if "id" in where else None,
            _pin(how.get("pin-source")),
        )


def _attributes(text: str, separator: str, known: frozenset[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(separator)):
        key, equals, value = part.partition("=")
        if key == "pin-value":
            raise SignError("PKCS #11 URI: pin-value would show the PIN to everybody; use pin-source")
        if key in _KNOWN_BUT_UNUSED or key not in known or not equals or key in found:
            raise SignError(f"PKCS #11 URI: {key[:32]!r} is there twice, has no value, or is not understood")
        found[key] = value
    return found


def _pin(source: str | None) -> str | None:
    if source is None:
        return os.environ.get(PIN_VARIABLE)
    location = urlsplit(unquote(source))
    if location.scheme not in {"file", ""} or location.netloc:
        raise SignError("PKCS #11 URI: pin-source must name a file")
    try:
        with Path(location.path).open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise SignError(f"{location.path}: open to others; a PIN's file must have mode 0600")
            return file.read(_PIN_BYTES_MAX).decode("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SignError(f"PIN file {location.path}: {error}") from error
