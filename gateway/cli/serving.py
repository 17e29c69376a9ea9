"""`scanward serve` and `scanward check-config`."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.app.life import App, check
from gateway.settings.config import Config

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--config", required=True, type=_FILE, help="Configuration, TOML.")
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help='Gets {"grpc","http","metrics"} addresses once the gateway is ready.',
)
def serve(*, config: Path, ready_file: Path | None) -> None:
    """Run the gateway until SIGTERM; SIGHUP reads the configuration again."""
    App(config, ready_file=ready_file).run()


@click.command("check-config")
@click.argument("file", type=_FILE)
def check_config(*, file: Path) -> None:
    """Check a configuration and everything it names; exit 2 where it cannot be served."""
    for remark in check(Config.load(file)):
        click.echo(remark, err=True)
    click.echo(f"{file}: can be served", err=True)
