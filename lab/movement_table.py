"""What a recalibration says for people, or as JSON: every threshold, from the first to the candidate."""

import json
from collections.abc import Sequence
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from lab.recalibration import Chosen, Movement


def show(movements: Sequence[Movement], chosen: Chosen, *, as_json: bool) -> None:
    """Print every threshold, from the first calibration to the candidate, and what was left out."""
    if as_json:
        told = {"n": len(chosen.images), "left_out": dict(chosen.left_out), "movements": [asdict(m) for m in movements]}
        click.echo(json.dumps(told))
        return
    left_out = ", ".join(f"{count} {reason}" for reason, count in sorted(chosen.left_out.items())) or "none"
    table = Table(title=f"{len(chosen.images)} signed scans; left out: {left_out}")
    for column in ("threshold", "first", "before", "candidate", "moved"):
        table.add_column(column)
    for each in movements:
        values = (f"{value:.4g}" for value in (each.anchor, each.before, each.after))
        table.add_row(f"{each.detector} at {each.rate:g}", *values, f"{each.moved:+.2f}")
    Console().print(table)
