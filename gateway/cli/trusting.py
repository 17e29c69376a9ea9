"""`scanward trust`: keeps what the gateway knows of withdrawn certificates up to date."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from gateway.cli.refreshing import Outcome, refresh
from gateway.settings.trust import TrustTable

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def trust() -> None:
    """Trust material: what says that a certificate was not withdrawn."""


@trust.command("refresh")
@click.option("--config", required=True, type=_FILE, help="The gateway's configuration; only [trust] is read.")
@click.option("--once", is_flag=True, help="One pass, for a timer; else a pass every --every seconds until SIGTERM.")
@click.option("--every", type=click.FloatRange(min=1.0), default=3600.0, show_default=True, help="Seconds.")
@click.option("--timeout", "seconds_max", type=click.FloatRange(min=0.1), default=30.0, show_default=True,
              help="Seconds for each thing that is fetched, however slowly it comes.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON document a pass on stdout.")
@click.pass_context
def refresh_command(
    ctx: click.Context, *, config: Path, once: bool, every: float, seconds_max: float, as_json: bool
) -> None:
    """Fetch revocation lists and OCSP responses over http(s) into the folders that [trust.NAME] reads.

    Nothing is replaced but by something newer that the right authority signed. A gateway that runs takes what is
    new by itself. Exit 1 where something could not be had, or is out of date.
    """
    with _told_to_stop() as stop:
        while True:
            outcomes = refresh(TrustTable.load(config).policies, datetime.now(UTC), seconds_max)
            _say(outcomes, as_json=as_json)
            if once or stop.wait(every):
                break
    ctx.exit(0 if all(outcome.ok for outcome in outcomes) else 1)


def _say(outcomes: list[Outcome], *, as_json: bool) -> None:
    if as_json:
        sources = [outcome.as_json() for outcome in outcomes]
        click.echo(json.dumps({"sources": sources, "ok": all(outcome.ok for outcome in outcomes)}))
        return
    for outcome in outcomes:
        issued = f"issued {outcome.material.this_update:%Y-%m-%d %H:%M}Z" if outcome.material else ""
        told = "; ".join(part for part in (issued, outcome.detail) if part)
        named = " ".join(part for part in (outcome.about, outcome.url) if part)
        click.echo(f"{outcome.trust}: {outcome.kind}: {named}: {outcome.result}" + (f" ({told})" if told else ""))


@contextmanager
def _told_to_stop() -> Iterator[threading.Event]:
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
