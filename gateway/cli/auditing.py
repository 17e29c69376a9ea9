"""`scanward audit`: verifies, shows and exports the audit log."""

from __future__ import annotations

import json
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gateway.audit import verify as log_file
from gateway.cli import CannotRun
from signing import EnvelopeError, envelope

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_log_option = click.option("--log", "log", required=True, type=_FILE, help="The audit log, an SQLite file.")


@click.group()
def audit() -> None:
    """The audit log: every decision, in a chain that cannot be changed unnoticed."""


@audit.command()
@_log_option
@click.option("--key", "keys", required=True, multiple=True, type=_FILE,
              help="Public checkpoint key, PEM, from outside the log; repeatable for retired ones.")  # fmt: skip
@click.option("--checkpoint", type=_FILE, help="Checkpoint carried off the machine: without it a cut end is not seen.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def verify(ctx: click.Context, *, log: Path, keys: tuple[Path, ...], checkpoint: Path | None, as_json: bool) -> None:
    """Walk the whole log and believe nothing but the keys. Exit 1 where a record was changed."""
    sealed = checkpoint.read_bytes() if checkpoint is not None else None
    report = log_file.verify(log, [_public_key(key) for key in keys], sealed)
    if as_json:
        document = {"records": report.records, "first_bad": report.first_bad, "root": report.root, "ok": report.ok}
        click.echo(json.dumps(document))
    elif report.ok:
        click.echo(
            f"{report.records} records, unchanged; {report.sealed} under a signed checkpoint; root {report.root}"
        )
    else:
        click.echo(f"record {report.first_bad} of {report.records} cannot be believed: {report.detail}")
    if not report.ok and as_json:
        click.echo(report.detail, err=True)
    ctx.exit(0 if report.ok else 1)


@audit.command()
@click.argument("index", type=click.IntRange(min=0))
@_log_option
def show(*, index: int, log: Path) -> None:
    """Print one record as JSON; verifies nothing."""
    click.echo(json.dumps(log_file.show(log, index), indent=2))


@audit.command()
@_log_option
@click.option("--format", "format_", type=click.Choice(["jsonl"]), default="jsonl", show_default=True)
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
def export(*, log: Path, format_: str, out: Path) -> None:
    """Write every record as one line of JSON; verifies nothing."""
    with out.open("x", encoding="utf-8") as file:
        count = log_file.export_jsonl(log, file)
    click.echo(f"{count} records written to {out} ({format_})", err=True)


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        return envelope.load_public_key(path)
    except EnvelopeError as error:
        raise CannotRun(str(error)) from error
