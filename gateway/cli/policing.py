"""`scanward policy`: what another policy would have made of the scans that the audit log holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from gateway.audit.export import lines
from gateway.audit.places import open_reader
from gateway.policy_replay import Judges, ReplayReport
from gateway.policy_replay import replay as replay_log
from gateway.settings.config import Config

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_WHY = {
    "no_route": "were sent to a route that the new configuration does not have",
    "lacking": "hold too little: examined by an older version, or by a route that had no model then",
}


@click.group()
def policy() -> None:
    """The policy: try another one on what has already been decided."""


@policy.command()
@click.option("--log", "place", required=True, metavar="PATH_OR_DSN",
              help="The audit log: an SQLite file, or postgresql://…")  # fmt: skip
@click.option("--config", required=True, type=_FILE, help="The configuration with the new policy.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def replay(ctx: click.Context, *, place: str, config: Path, as_json: bool) -> None:
    """Decide again about every scan in the log, by what was found in it then, and show what would change.

    Nothing is written, served or examined again. Exit 1: something would be admitted that was held or refused.
    """
    judges = Judges.of(Config.load(config))
    with open_reader(place) as log:
        report = replay_log(lines(log), judges)
    if as_json:
        click.echo(json.dumps(_document(report)))
    else:
        _show(report)
    ctx.exit(1 if report.opens else 0)


def _document(report: ReplayReport) -> dict[str, Any]:
    return {
        "replayed": report.replayed,
        "unchanged": {disposition.label: count for disposition, count in sorted(report.unchanged.items())},
        "changes": [
            {
                "route": change.route,
                "from": change.before.label,
                "to": change.after.label,
                "count": change.count,
                "examples": list(change.examples),
            }
            for change in report.changes
        ],
        "skipped": dict(sorted(report.skipped.items())),
        "ok": not report.opens,
    }


def _show(report: ReplayReport) -> None:
    click.echo(f"{report.replayed} decisions, {sum(report.unchanged.values())} as before")
    for change in report.changes:
        records = ", ".join(map(str, change.examples)) + (", …" if change.count > len(change.examples) else "")
        what = f"{change.count} from {change.before.label} to {change.after.label}{' (opens)' if change.opens else ''}"
        click.echo(f"{change.route}: {what}; records {records}")
    for why, count in sorted(report.skipped.items()):
        click.echo(f"{count} cannot be replayed: they {_WHY[why]}")
