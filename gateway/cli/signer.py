"""The options by which every command that signs is told with which key."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import click

from gateway.cli import CannotRun
from signing import FileSigner
from signing.signers import Pkcs11Signer

PROFILES = ("base", "creator", "authorization", "sr", "sr-verified", "inference")

_F = TypeVar("_F", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_OPTIONS = (
    click.option("--key", type=_FILE, help="Private key, PEM: RSA, P-256, P-384 or P-521."),
    click.option("--password-file", type=_FILE, help="File with the password of an encrypted private key."),
    click.option("--pkcs11-uri", metavar="URI", help="A key in hardware instead (RFC 7512); its PIN by pin-source, "
                 "or in SCANWARD_PKCS11_PIN."),
    click.option("--cert", required=True, type=_FILE, help="The key's certificate, PEM."),
    click.option("--chain", type=_FILE, help="Certificates of its issuers, PEM: checked; a series "
                 "manifest carries them, a DICOM signature has no room for them."),
    click.option("--force", is_flag=True, help="Replace OUT where it is there already."),
)  # fmt: skip


def signer_options(command: _F) -> _F:
    """Add the options to a command, which passes what they give on to `open_signer`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def open_signer(given: dict[str, Any], stack: ExitStack) -> FileSigner | Pkcs11Signer:
    """The signer that the options name; `stack` closes it.

    Raises:
        SignError: key, token or certificate cannot be used.
        click.UsageError: not exactly one key.
    """
    uri, key, password = given["pkcs11_uri"], given["key"], given["password_file"]
    if (uri is None) == (key is None):
        raise click.UsageError("give either --key or --pkcs11-uri")
    if uri is not None:
        if password is not None:
            raise click.UsageError("--password-file belongs to --key")
        signer = Pkcs11Signer.open(uri, given["cert"], given["chain"])
        stack.callback(signer.close)
        return signer
    secret = password.read_bytes().rstrip(b"\r\n") if password is not None else None
    return FileSigner.load(key, given["cert"], given["chain"], secret)


def refuse_to_replace(out: Path, *, force: bool) -> None:
    """Raises `CannotRun` where OUT is there already and may not be replaced; before any work is done for it."""
    if out.exists() and not force:
        raise CannotRun(f"{out}: is there already; --force replaces it")


def write_whole(out: Path, data: bytes, *, force: bool) -> None:
    """Write a file whole or not at all, with `force` also where OUT is what was read; raises `CannotRun`."""
    try:
        handle, name = tempfile.mkstemp(
            dir=out.parent, prefix=f".{out.name}."
        )  # nobody else's name, as OUT.part may be
    except OSError as error:
        raise CannotRun(f"{out} cannot be written: {error.strerror}") from error
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        part.chmod(0o666 & ~_umask())
        if force:
            part.replace(out)
        else:
            out.hardlink_to(part)  # in one step, and never over a file that came meanwhile
    except FileExistsError:  # also a link that points nowhere
        raise CannotRun(f"{out}: is there already; --force replaces it") from None
    except OSError as error:
        raise CannotRun(f"{out} cannot be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _umask() -> int:
    """What files of this process are not to be; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
