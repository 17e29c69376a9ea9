"""`scanward demo`: starts everything on this machine and shows the main job end to end (architecture 5.5)."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="NPZ",
    help="Show it on these images: a model is trained and detectors are fitted on the spot (minutes).",
)
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Leave everything in DIR: pictures, scans, audit log, and scanward.toml, which `scanward serve` starts.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout and nothing else.")
def demo(data: Path | None, keep: Path | None, as_json: bool) -> None:
    """Start a gateway on this machine, attack it, and show what it does."""
    from gateway.errors import GatewayError
    from gateway.testing import GatewayFailed
    from lab.demo.report import Report, show
    from lab.demo.run import run

    with _directory(keep) as directory:
        try:
            report: Report = run(directory, data, kept=keep is not None)
        except (GatewayError, GatewayFailed, LookupError) as error:
            click.echo(f"the demo cannot run: {error}", err=True)
            sys.exit(2)
        if as_json:
            click.echo(json.dumps(report.document(), indent=2))
        else:
            show(report)
    sys.exit(0 if report.ok else 1)


@contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """The kept directory, else one that goes when the demo ends; pictures stay in ./demo-output either way."""
    if keep is not None:
        if keep.exists() and any(keep.iterdir()):
            raise click.BadParameter(f"{keep} is not empty", param_hint="--keep")
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="scanward-demo-") as temporary:
        yield Path(temporary)
