"""The options by which every command that talks to a gateway finds it and says who it is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --address, --token-file, --ca, --cert, --key and --server-name, which `connection` takes."""
    for option in (
        click.option("--server-name", envvar="SCANWARD_SERVER_NAME",
                     help="Name in the gateway's certificate, if not the address's."),
        click.option("--key", type=_FILE, envvar="SCANWARD_KEY", help="Its private key, PEM."),
        click.option("--cert", type=_FILE, envvar="SCANWARD_CERT", help="Client certificate, PEM."),
        click.option("--ca", type=_FILE, envvar="SCANWARD_CA",
                     help="CA of the gateway's certificate, PEM; without it only loopback is talked to."),
        click.option("--token-file", type=_FILE, help="File with the bearer token; else SCANWARD_TOKEN is taken."),
        click.option("--address", required=True, envvar="SCANWARD_ADDRESS", help="HOST:PORT of the gateway."),
    ):  # fmt: skip
        command = option(command)
    return command


def connection(
    *, address: str, token_file: Path | None, ca: Path | None, cert: Path | None, key: Path | None,
    server_name: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What a client is made with."""
    return {
        "address": address,
        "token": _token(token_file) if token_file else os.environ.get("SCANWARD_TOKEN"),
        "ca": _bytes(ca),
        "certificate": _bytes(cert),
        "private_key": _bytes(key),
        "server_name": server_name,
    }


def _token(file: Path) -> str:
    """The bearer token in a file; raises `click.BadParameter` where it holds none."""
    token = file.read_bytes().strip()
    if not re.fullmatch(rb"[\x21-\x7e]+", token):
        raise click.BadParameter(f"{file} holds no token: one line of printable ASCII", param_hint="--token-file")
    return token.decode("ascii")


def _bytes(file: Path | None) -> bytes | None:
    return file.read_bytes() if file is not None else None
