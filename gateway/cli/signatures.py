"""`scanward sign` and `scanward verify`: DICOM digital signatures of files, without a gateway."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import click

from gateway.cli import CannotRun
from gateway.cli.document import GrowingDocument
from gateway.cli.material import load_trust, moment, trust_options
from gateway.cli.signer import PROFILES, open_signer, refuse_to_replace, signer_options, write_whole
from gateway.cli.timestamping import HttpAuthority
from signing import DicomError, FileVerdict, Outcome, SignError, SigningError, TrustError
from signing import sign as sign_object
from signing.files import expand
from signing.parallel import Verifiers

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FEW_FILES = 3
"""Not worth starting processes for."""


@click.command()
@click.argument("in_", metavar="IN", type=_FILE)
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@signer_options
@click.option("--profile", type=click.Choice(PROFILES), default="inference", show_default=True)
@click.option("--tags", default="", metavar="KEYWORD,…", help="Attributes to cover beside those of the profile.")
@click.option("--mac", type=click.Choice(["sha256", "sha384", "sha512"]), default="sha256", show_default=True)
@click.option("--tsa", metavar="URL", help="RFC 3161 time-stamping authority.")
def sign(*, in_: Path, out: Path, profile: str, tags: str, mac: str, tsa: str | None, force: bool, **keys: Any) -> None:
    """Add a digital signature to the DICOM file IN and write it to OUT; every other byte stays as it was."""
    refuse_to_replace(out, force=force)
    try:
        with ExitStack() as stack:
            signed = sign_object(
                in_.read_bytes(),
                signer=open_signer(keys, stack),
                profile=profile,
                tags=[keyword.strip() for keyword in tags.split(",") if keyword.strip()],
                mac=mac.upper(),
                at=datetime.now(UTC),
                tsa=HttpAuthority(tsa) if tsa is not None else None,
            )
    except (SignError, DicomError) as error:
        raise CannotRun(f"{in_}: {error}") from error
    write_whole(out, signed, force=force)
    click.echo(f"{out}: signed", err=True)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@trust_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def verify(ctx: click.Context, /, *, paths: tuple[Path, ...], as_json: bool, **material: Any) -> None:
    """Verify the digital signatures of DICOM files, or of every file in a folder, on all cores.

    Exit 0: all passed; 1: one did not; 2: one could not be read.
    """
    try:
        trust = load_trust(material)
    except TrustError as error:
        if as_json:
            click.echo(json.dumps({"files": []}))
        raise CannotRun(str(error)) from error
    few = len(list(islice(expand(paths), _FEW_FILES + 1)))
    if few == 0:  # a mount that is not there must not read as "all passed"
        if as_json:
            click.echo(json.dumps({"files": []}))
        raise CannotRun("there is no file in what was given")
    several = few > _FEW_FILES
    document = GrowingDocument("files") if as_json else None
    worst = 0
    try:
        with Verifiers(trust, moment(material), processes=None if several else 1) as verifiers:
            for verdict in _shown(verifiers.verify(expand(paths)), paths, quiet=not several):
                worst = max(worst, _exit_code(verdict))
                if document is not None:
                    document.add(verdict.as_json())
                else:
                    click.echo(_line(verdict))
    except SigningError as error:
        raise CannotRun(str(error)) from error
    finally:
        if document is not None:
            document.close()
    ctx.exit(worst)


def _exit_code(verdict: FileVerdict) -> int:
    if not verdict.readable:
        return CannotRun.exit_code
    return 0 if verdict.verdict is Outcome.PASSED else 1


def _shown(verdicts: Iterator[FileVerdict], paths: tuple[Path, ...], *, quiet: bool) -> Iterator[FileVerdict]:
    """As they come, with a bar on the terminal."""
    if quiet or not sys.stderr.isatty():
        yield from verdicts
        return
    from rich.console import Console
    from rich.progress import track

    total = sum(1 for _ in expand(paths))
    yield from track(verdicts, "verifying", total, console=Console(stderr=True), transient=True)


def _line(verdict: FileVerdict) -> str:
    """For people: the verdict, why, the file, and who signed what."""
    words = [f"{verdict.verdict}/{verdict.reason}", verdict.path]
    if verdict.detail:
        words.append(verdict.detail)
    words += [
        f"{report.profile} by {report.signer.subject} ({report.algorithm}, {report.mac})"
        for report in verdict.signatures
        if report.signer is not None
    ]
    return "\t".join(words)
