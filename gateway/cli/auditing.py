"""`scanward audit`: verifies, shows and exports the audit log."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from gateway.audit import atna
from gateway.audit import export as exporting
from gateway.audit import verify as verifying
from gateway.audit.places import open_reader
from gateway.cli import CannotRun
from signing import EnvelopeError, envelope

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_log_option = click.option(
    "--log", "place", required=True, metavar="PATH_OR_DSN", help="The audit log: an SQLite file, or postgresql://…"
)


class _Time(click.ParamType[datetime]):
    name = "rfc3339"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            at = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time like 2026-05-04 or 2026-05-04T12:00:00Z", param, ctx)
        return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


@click.group()
def audit() -> None:
    """The audit log: every decision, in a tree that cannot be changed unnoticed."""


@audit.command()
@_log_option
@click.option("--key", "keys", required=True, multiple=True, type=_FILE,
              help="Public checkpoint key, PEM, from outside the log; repeatable for retired ones.")  # fmt: skip
@click.option("--checkpoint", "checkpoints", multiple=True, type=_FILE,
              help="Checkpoint or anchor file from elsewhere; without one a cut end is not seen.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def verify(
    ctx: click.Context, *, place: str, keys: tuple[Path, ...], checkpoints: tuple[Path, ...], as_json: bool
) -> None:
    """Walk the whole log and believe nothing but the keys. Exit 1 where a record was changed."""
    trusted = [_public_key(key) for key in keys]
    outside = [found for file in checkpoints for found in verifying.read_checkpoints(file.read_bytes(), trusted)]
    with open_reader(place) as log:
        report = verifying.verify(log, trusted, outside, _say_progress)
    if as_json:
        document: dict[str, object] = {
            "records": report.records, "first_bad": report.first_bad, "root": report.root, "ok": report.ok,
        }  # fmt: skip
        if report.pruned:
            document["pruned"] = {"records": report.pruned, "by": report.pruned_by}
        click.echo(json.dumps(document))
    elif report.ok:
        pruned = f"the first {report.pruned} pruned (record {report.pruned_by} says so); " if report.pruned else ""
        sealed = f"{report.sealed} under a signed checkpoint"
        click.echo(f"{report.records} records, unchanged; {pruned}{sealed}; root {report.root}")
    else:
        click.echo(f"record {report.first_bad} of {report.records} cannot be believed: {report.detail}")
    if not report.ok and as_json:
        click.echo(report.detail, err=True)
    ctx.exit(0 if report.ok else 1)


@audit.command()
@click.argument("index", type=click.IntRange(min=0))
@_log_option
def show(*, index: int, place: str) -> None:
    """Print one record as JSON; verifies nothing."""
    with open_reader(place) as log:
        click.echo(json.dumps(exporting.show(log, index), indent=2))


@audit.command()
@_log_option
@click.option("--format", "format_", type=click.Choice(["jsonl", "atna"]), default="jsonl", show_default=True,
              help="JSON Lines, or DICOM audit messages (PS3.15 A.5), one a line.")  # fmt: skip
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--from", "start", type=_Time(), help="Records written at this time or later.")
@click.option("--source-id", default="scanward", show_default=True, help="AuditSourceID of the messages.")
@click.option("--to", "end", type=_Time(), help="Records written before this time.")
def export(
    *, place: str, format_: str, out: Path, start: datetime | None, source_id: str, end: datetime | None
) -> None:
    """Write records for other systems, a line each; verifies nothing."""
    with open_reader(place) as log, out.open("x", encoding="utf-8") as file:
        period = exporting.Period(start, end)
        if format_ == "jsonl":
            count = exporting.export_jsonl(log, file, period)
        else:
            count = atna.export_atna(log, file, period, sender=atna.Sender(source_id))
    click.echo(f"{count} records written to {out} ({format_})", err=True)


def _say_progress(records: int) -> None:
    if sys.stderr.isatty():
        click.echo(f"\r{records} records", nl=False, err=True)


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        return envelope.load_public_key(path)
    except EnvelopeError as error:
        raise CannotRun(str(error)) from error
