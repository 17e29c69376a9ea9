"""`scanward lint` and `scanward diff`: what will break a signature, and where two objects differ."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import click

from gateway.cli import CannotRun
from gateway.cli.document import GrowingDocument
from gateway.cli.signer import PROFILES
from signing import DicomError, read
from signing.diff import Difference, differences
from signing.files import expand, open_bytes
from signing.lint import Finding, is_readable
from signing.lint import lint as lint_object

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--profile", type=click.Choice(PROFILES), default="inference", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def lint(ctx: click.Context, *, paths: tuple[Path, ...], profile: str, as_json: bool) -> None:
    """Say what will break the signature of DICOM files, or of every file in a folder, and what to do about it.

    Exit 0: nothing; 1: something; 2: a file could not be read. No value of any attribute is shown.
    """
    document = GrowingDocument("files") if as_json else None
    worst = seen = 0
    for path in expand(paths):
        seen += 1
        findings, unreadable = _findings(path, profile)
        worst = max(worst, 2 if unreadable is not None else bool(findings))
        if document is not None:
            document.add(_entry(path, findings, unreadable))
        else:
            _print(path, findings, unreadable)
    if document is not None:
        document.close(ok=seen > 0 and worst == 0)
    if seen == 0:  # a mount that is not there must not read as "nothing found"
        raise CannotRun("there is no file in what was given")
    ctx.exit(worst)


def _findings(path: Path, profile: str) -> tuple[tuple[Finding, ...], str | None]:
    """What was found, and why the file cannot be read, if it cannot."""
    try:
        with open_bytes(path) as data:
            findings = lint_object(data, profile)
    except OSError as error:
        return (), f"cannot be read: {error.strerror or error}"
    return findings, None if is_readable(findings) else findings[0].detail


def _entry(path: Path, findings: tuple[Finding, ...], unreadable: str | None) -> dict[str, Any]:
    return {
        "path": str(path),
        "readable": unreadable is None,
        "detail": unreadable or "",
        "findings": [finding.as_json() for finding in findings],
        "ok": not findings and unreadable is None,
    }


def _print(path: Path, findings: tuple[Finding, ...], unreadable: str | None) -> None:
    if unreadable is not None and not findings:
        click.echo(f"unreadable\t{path}\t{unreadable}")
    elif not findings:
        click.echo(f"ok\t{path}")
    for finding in findings:
        click.echo(f"{finding.severity}/{finding.code}\t{path}\t{finding.path}\t{finding.detail}\t{finding.advice}")


@click.command()
@click.argument("a", type=_FILE)
@click.argument("b", type=_FILE)
@click.option("--all", "every", is_flag=True, help="Every difference; only the first without it.")
@click.option("--show-values", is_flag=True, help="Show up to 64 bytes of both values: patient data, perhaps.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def diff(ctx: click.Context, *, a: Path, b: Path, every: bool, show_values: bool, as_json: bool) -> None:
    """Say where the DICOM files A and B differ in what a signature covers, signatures themselves left aside.

    Exit 0: nowhere; 1: somewhere; 2: one of them could not be read.
    """
    with open_bytes(a) as data_a, open_bytes(b) as data_b:
        sides = []
        for path, data in ((a, data_a), (b, data_b)):
            try:
                sides.append(read(data))
            except DicomError as error:
                if as_json:
                    click.echo(json.dumps({"same": None, "differences": []}))
                raise CannotRun(f"{path}: {error}") from error
        found = list(islice(differences(*sides), None if every else 1))
    if as_json:
        listed = [each.as_json(show_values=show_values) for each in found]
        click.echo(json.dumps({"same": not found, "differences": listed}))
    else:
        for each in found:
            click.echo(_line(each, show_values=show_values))
    ctx.exit(1 if found else 0)


def _line(found: Difference, *, show_values: bool) -> str:
    document = found.as_json(show_values=show_values)
    words = [document["kind"], found.path, document["tag"]]
    if found.offset is not None:
        words.append(f"byte {found.offset}")
    if found.length_a is not None or found.length_b is not None:
        words.append(f"lengths {found.length_a}, {found.length_b}")
    if show_values:
        words += [f"A: {document['value_a']}", f"B: {document['value_b']}"]
    return "\t".join(words)
