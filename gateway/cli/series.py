"""`scanward series`: signs the list of a series' objects, and finds slices that are missing, mixed in or altered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from gateway.cli import CannotRun
from gateway.cli.material import load_trust, moment, trust_options
from gateway.cli.signer import open_signer, refuse_to_replace, signer_options, write_whole
from signing import DicomError, EnvelopeError, Outcome, SignatureError, SignError, TrustError
from signing.envelope import ENVELOPE_BYTES_MAX
from signing.files import expand
from signing.series import SeriesReason, SeriesVerdict, sign_series, verify_series

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group()
def series() -> None:
    """Series manifests: which objects belong to a series, and what they say."""


@series.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@signer_options
def sign(*, folder: Path, out: Path, force: bool, **keys: Any) -> None:
    """List every object in DIR, which must be those of one series, and write the signed list to OUT."""
    refuse_to_replace(out, force=force)
    try:
        with ExitStack() as stack:
            signer = open_signer(keys, stack)
            files = list(_files(folder, out))
            manifest = sign_series(files, signer=signer, chain=signer.chain, at=datetime.now(UTC))
    except (SignError, DicomError) as error:
        raise CannotRun(f"{folder}: {error}") from error
    write_whole(out, manifest, force=force)
    click.echo(f"{out}: {len(files)} objects listed", err=True)


@series.command()
@click.argument("folder", metavar="DIR", type=_FOLDER)
@click.argument("manifest", type=_FILE)
@trust_options
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def verify(ctx: click.Context, /, *, folder: Path, manifest: Path, as_json: bool, **material: Any) -> None:
    """Hold every file in DIR against a signed MANIFEST.

    Exit 0: all there, and nothing else; 1: not so, or the manifest is not believed; 2: a file could not be read.
    """
    try:
        trust = load_trust(material)
        with manifest.open("rb") as file:
            envelope = file.read(ENVELOPE_BYTES_MAX + 1)
        found = verify_series(_files(folder, manifest), envelope, trust, at=moment(material))
    except SignatureError as error:
        outcome = Outcome.INDETERMINATE if error.indeterminate else Outcome.FAILED
        _show(None, str(outcome), f"manifest_{error.reason}", error.detail, as_json=as_json)
        ctx.exit(1)
    except EnvelopeError as error:
        _show(None, str(Outcome.FAILED), "manifest_malformed", str(error), as_json=as_json)
        ctx.exit(CannotRun.exit_code)
    except TrustError as error:
        raise CannotRun(str(error)) from error
    reasons = {finding.reason for finding in found.findings}
    first = next((str(reason) for reason in SeriesReason if reason in reasons), "ok")
    _show(found, str(found.verdict), first, "", as_json=as_json)
    unreadable = SeriesReason.UNREADABLE in reasons
    ctx.exit(CannotRun.exit_code if unreadable else 1 if reasons else 0)


def _files(folder: Path, manifest: Path) -> Iterator[Path]:
    """The folder's files, but the manifest where it lies among them."""
    for path in expand([folder]):
        if not (manifest.exists() and path.samefile(manifest)):
            yield path


def _show(found: SeriesVerdict | None, verdict: str, reason: str, detail: str, *, as_json: bool) -> None:
    if as_json:
        document: dict[str, Any] = {"verdict": verdict, "reason": reason, "detail": detail}
        document |= {"listed": None, "found": None, "created": None, "signer": None, "findings": []}
        if found is not None:
            signer = found.signer
            document |= {
                "listed": found.listed, "found": found.found, "created": found.created.isoformat(),
                "signer": {"subject": signer.subject, "issuer": signer.issuer,
                           "fingerprint_sha256": signer.fingerprint_sha256},
                "findings": [finding.as_json() for finding in found.findings],
            }  # fmt: skip
        click.echo(json.dumps(document))
        return
    for finding in found.findings if found is not None else ():
        click.echo(
            "\t".join(filter(None, (str(finding.reason), finding.sop_instance_uid, finding.path, finding.detail)))
        )
    counts = f"{found.found} of {found.listed} objects there, by {found.signer}" if found is not None else detail
    click.echo(f"{verdict}/{reason}\t{counts}")
