"""`scanward health`: asks a gateway's gRPC health service, as a container engine's or Kubernetes' probe does."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.cli import CannotRun
from gateway.client.client import Client, ClientError

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--address", required=True, envvar="SCANWARD_ADDRESS", help="HOST:PORT of the gateway.")
@click.option("--live", is_flag=True, help="Ask whether the process lives, not whether it is ready.")
@click.option("--ca", type=_FILE, envvar="SCANWARD_CA", help="CA of the gateway's certificate, PEM.")
@click.option("--cert", type=_FILE, envvar="SCANWARD_CERT", help="Client certificate, PEM.")
@click.option("--key", type=_FILE, envvar="SCANWARD_KEY", help="Its private key, PEM.")
@click.option("--server-name", envvar="SCANWARD_SERVER_NAME", help="Name in its certificate, if not the address's.")
@click.option("--timeout", type=click.FloatRange(0.1, 60.0), default=5.0, show_default=True, help="Seconds.")
@click.pass_context
def health(
    ctx: click.Context,
    *,
    address: str,
    live: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    server_name: str | None,
    timeout: float,
) -> None:
    """Ask a gateway's health service; needs no token.

    Exit 0: serving; 1: it answers that it is not; 2: no answer.
    """
    pem = [file.read_bytes() if file is not None else None for file in (ca, cert, key)]
    try:
        with Client(address, ca=pem[0], certificate=pem[1], private_key=pem[2], server_name=server_name) as client:
            client.check_health("" if live else "ready", timeout_s=timeout)
    except ClientError as error:
        if error.status != "NOT_SERVING":
            raise CannotRun(str(error)) from error
        click.echo(str(error), err=True)
        ctx.exit(1)
