"""What a value in a configuration may be: files that must be there, secrets that must be private, addresses, names."""

from __future__ import annotations

import ipaddress
import os
import stat
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from gateway.settings.coherence import NAME


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


def _key_place(value: str, info: ValidationInfo) -> str:
    return value if value.startswith(("pkcs11:", "env:")) else str(_secret_file(Path(value), info))


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 0xFFFF:
        raise ValueError("must be HOST:PORT, the port between 0 and 65535")
    return value


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return value


def loopback(address: str) -> bool:
    """Whether HOST:PORT names this machine alone."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _ae_title(value: str) -> str:
    if not 1 <= len(value) <= 16 or not value.isascii() or not value.isprintable() or "\\" in value:
        raise ValueError("an AE title has 1 to 16 printable ASCII characters and no backslash (PS3.5 6.2)")
    if value != value.strip():
        raise ValueError("an AE title neither begins nor ends with a space")
    return value


File = Annotated[Path, AfterValidator(_readable_file)]
Directory = Annotated[Path, AfterValidator(_directory)]
FileOrDirectory = Annotated[Path, AfterValidator(_readable)]
SecretFile = Annotated[Path, AfterValidator(_secret_file)]
KeyPlace = Annotated[str, AfterValidator(_key_place)]
OwnDirectory = Annotated[Path, AfterValidator(_resolved)]
Address = Annotated[str, AfterValidator(_address)]
Url = Annotated[str, AfterValidator(_url)]
AeTitle = Annotated[str, AfterValidator(_ae_title)]
Name = Annotated[str, Field(pattern=f"^{NAME}$")]


class Table(BaseModel):
    """Frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
