"""`scanward quarantine`: finds held scans, shows them, releases them, confirms them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gateway.cli import CannotRun
from gateway.cli.connecting import connection, connection_options
from gateway.client.client import ClientError
from gateway.client.reviewer import HeldScan, Reviewer

_HEADINGS = ("id", "state", "since", "reason", "p-value", "modality", "route", "source", "bytes", "decided by")
_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
_id_argument = click.argument("identity", metavar="ID")


def _reason_option(help_: str) -> Callable[..., Any]:
    return click.option("--reason", required=True, help=f"{help_} It stands in the audit log: name no patient.")


@click.group()
def quarantine() -> None:
    """Held scans: find them, look at them, decide. Needs the role `review`."""


@quarantine.command("list")
@click.option("--state", type=click.Choice(["held", "released", "confirmed", "all"]), default="held",
              show_default=True, help="Which to list.")  # fmt: skip
@connection_options
@_json_option
def list_(*, state: str, as_json: bool, **where: Any) -> None:
    """List what is in quarantine, a row a scan."""
    with _reviewer(where) as reviewer:
        scans = list(reviewer.held("" if state == "all" else state))
    if as_json:
        click.echo(json.dumps({"scans": [_document(scan) for scan in scans]}))
    else:
        _show_rows(scans)


@quarantine.command()
@_id_argument
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
              help="New file for the scan's bytes; that you took them is recorded.")  # fmt: skip
@click.option("--map", "map_out", type=click.Path(dir_okay=False, path_type=Path), metavar="PNG",
              help="New file for a picture of where the detectors disagree; recorded likewise.")  # fmt: skip
@connection_options
@_json_option
def show(*, identity: str, out: Path | None, map_out: Path | None, as_json: bool, **where: Any) -> None:
    """Say why a scan is held and what was decided about it."""
    with _reviewer(where) as reviewer:
        scan = reviewer.show(identity)
        if out is not None:
            reviewer.save(scan, out)
        if map_out is not None:
            reviewer.save_map(scan, map_out)
    if as_json:
        click.echo(json.dumps(_document(scan)))
    else:
        _show_scan(scan)


@quarantine.command()
@_id_argument
@_reason_option("Why it may go on.")
@connection_options
@_json_option
@click.pass_context
def release(ctx: click.Context, /, *, identity: str, reason: str, as_json: bool, **where: Any) -> None:
    """Let a held scan go on to its model.

    Exit 0: released; 1: recorded, and another reviewer must agree; 2: not released.
    """
    with _reviewer(where) as reviewer:
        scan = reviewer.release(identity, reason)
    released = scan.state == "released"
    if as_json:
        click.echo(json.dumps(_document(scan)))
    elif released:
        click.echo(f"released by {_names(scan)}; record {scan.reply.log_index}; {_diagnosis(scan) or 'no diagnosis'}")
    else:
        click.echo(f"{_names(scan)} agreed; another reviewer must, before it is released")
    ctx.exit(0 if released else 1)


@quarantine.command()
@_id_argument
@_reason_option("Why it stays out.")
@connection_options
@_json_option
def confirm(*, identity: str, reason: str, as_json: bool, **where: Any) -> None:
    """Say that a held scan stays out."""
    with _reviewer(where) as reviewer:
        scan = reviewer.confirm(identity, reason)
    click.echo(json.dumps(_document(scan)) if as_json else f"confirmed by {_names(scan)}: it stays out")


@contextmanager
def _reviewer(where: dict[str, Any]) -> Iterator[Reviewer]:
    try:
        with Reviewer(**connection(**where)) as reviewer:
            yield reviewer
    except ClientError as error:
        raise CannotRun(error.message) from error


def _show_rows(scans: list[HeldScan]) -> None:
    """A table for people; tab-separated lines where stdout is not a terminal, since a table would be cut there."""
    console = Console()
    rows = [_row(scan) for scan in scans]
    if not console.is_terminal:
        for row in (_HEADINGS, *rows):
            sys.stdout.write("\t".join(row) + "\n")
        return
    table = Table(*_HEADINGS, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print(f"{len(scans)} scans")


def _row(scan: HeldScan) -> tuple[str, ...]:
    newest = scan.examinations[-1]
    p_values = [finding.p_value for finding in newest.findings if finding.HasField("p_value")]
    return (
        scan.id, scan.state, scan.since[:19], ",".join(scan.examinations[0].reasons),
        f"{min(p_values):.2g}" if p_values else "", scan.modality, scan.route, scan.source, str(scan.bytes),
        _names(scan),
    )  # fmt: skip


def _show_scan(scan: HeldScan) -> None:
    """One fact a line, the same on a terminal and elsewhere."""
    for name, value in zip(_HEADINGS, _row(scan), strict=True):
        click.echo(f"{name:12}{value}")
    click.echo(f"{'SHA-256':12}{scan.scan_sha256}")
    for examination in scan.examinations:
        click.echo(f"examined {examination.received_at}")
        for finding in examination.findings:
            click.echo(f"  {finding.stage:12}{finding.outcome:14}{finding.reason:16}{finding.detail}")
    for act in scan.acts:
        click.echo(f"{act.at}  {act.by}: {act.reason}")
    if diagnosis := _diagnosis(scan):
        click.echo(f"the model answered: {diagnosis}")


def _names(scan: HeldScan) -> str:
    return ", ".join(act.by for act in scan.acts)


def _diagnosis(scan: HeldScan) -> str:
    prediction = scan.reply.prediction
    score = next((each.score for each in prediction.scores if each.name == prediction.label), None)
    return "" if score is None else f"{prediction.label} {score:.2f}"


def _document(scan: HeldScan) -> dict[str, Any]:
    """One scan of the JSON document; what there is not is null."""
    prediction = scan.reply.prediction if scan.reply.HasField("prediction") else None
    return {
        **{name: getattr(scan, name) for name in (
            "id", "state", "scan_sha256", "bytes", "modality", "route", "receiver", "source", "since",
        )},
        "examinations": [
            {
                "received_at": examination.received_at,
                "reasons": list(examination.reasons),
                "findings": [
                    {
                        **{name: getattr(finding, name) for name in ("stage", "outcome", "reason", "detail")},
                        "score": finding.score if finding.HasField("score") else None,
                        "p_value": finding.p_value if finding.HasField("p_value") else None,
                        "p_values": dict(finding.p_values),
                    }
                    for finding in examination.findings
                ],
            }
            for examination in scan.examinations
        ],
        "acts": [{"by": act.by, "reason": act.reason, "at": act.at} for act in scan.acts],
        "prediction": None
        if prediction is None
        else {"label": prediction.label, "scores": {each.name: each.score for each in prediction.scores}},
        "log_index": scan.reply.log_index if scan.HasField("reply") else None,
    }  # fmt: skip
