"""`scanward sign` and `scanward verify`: DICOM digital signatures of files, without a gateway."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import click

from gateway.cli import CannotRun
from gateway.cli.timestamping import HttpAuthority
from signing import DicomError, FileSigner, FileVerdict, Outcome, Reason, SignError, Trust, TrustError
from signing import sign as sign_object
from signing.files import expand, verify_file
from signing.report import checks_not_run

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_MATERIAL = click.Path(exists=True, path_type=Path)
_PROFILES = ("base", "creator", "authorization", "sr", "sr-verified", "inference")


class _Moment(click.ParamType[datetime]):
    """An RFC 3339 time; one without an offset would mean another hour on another machine."""

    name = "rfc3339"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not an RFC 3339 time such as 2026-05-04T12:00:00Z", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no time zone", param, ctx)
        return moment


@click.command()
@click.argument("in_", metavar="IN", type=_FILE)
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--key", required=True, type=_FILE, help="Private key, PEM: RSA, P-256, P-384 or P-521.")
@click.option("--cert", required=True, type=_FILE, help="Its certificate, PEM.")
@click.option("--chain", type=_FILE, help="Certificates of its issuers, PEM.")
@click.option("--profile", type=click.Choice(_PROFILES), default="inference", show_default=True)
@click.option("--tags", default="", metavar="KEYWORD,…", help="Attributes to cover beside those of the profile.")
@click.option("--mac", type=click.Choice(["sha256", "sha384", "sha512"]), default="sha256", show_default=True)
@click.option("--tsa", metavar="URL", help="RFC 3161 time-stamping authority.")
def sign(
    *,
    in_: Path,
    out: Path,
    key: Path,
    cert: Path,
    chain: Path | None,
    profile: str,
    tags: str,
    mac: str,
    tsa: str | None,
) -> None:
    """Add a digital signature to the DICOM file IN and write it to OUT; every other byte stays as it was."""
    try:
        signed = sign_object(
            in_.read_bytes(),
            signer=FileSigner.load(key, cert, chain),
            profile=profile,
            tags=[keyword.strip() for keyword in tags.split(",") if keyword.strip()],
            mac=mac.upper(),
            at=datetime.now(UTC),
            tsa=HttpAuthority(tsa) if tsa is not None else None,
        )
    except (SignError, DicomError) as error:
        raise CannotRun(f"{in_}: {error}") from error
    part = out.with_name(f"{out.name}.part")
    part.write_bytes(signed)
    part.replace(out)  # whole or not at all, also where OUT is IN
    click.echo(f"{out}: signed", err=True)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--trust", "roots", required=True, multiple=True, type=_MATERIAL, help="Root certificates; repeatable.")
@click.option("--intermediates", multiple=True, type=_MATERIAL, help="Certificates in between; repeatable.")
@click.option("--crl", "crls", multiple=True, type=_MATERIAL, help="Revocation lists; repeatable.")
@click.option("--ocsp", multiple=True, type=_MATERIAL, help="OCSP responses, DER; repeatable.")
@click.option("--policy", type=_FILE, help="Trust policy, TOML; the strict one without it.")
@click.option("--at", type=_Moment(), help="Judge certificates as at this time; now without it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def verify(
    ctx: click.Context,
    *,
    paths: tuple[Path, ...],
    roots: tuple[Path, ...],
    intermediates: tuple[Path, ...],
    crls: tuple[Path, ...],
    ocsp: tuple[Path, ...],
    policy: Path | None,
    at: datetime | None,
    as_json: bool,
) -> None:
    """Verify the digital signatures of DICOM files, or of every file in a folder.

    Exit 0: all passed; 1: one did not; 2: one could not be read.
    """
    try:
        trust = Trust.load(policy, roots, intermediates, crls, ocsp)
    except TrustError as error:
        if as_json:
            click.echo(json.dumps({"files": []}))
        raise CannotRun(str(error)) from error
    moment = at if at is not None else datetime.now(UTC)
    verdicts = [_verdict(path, trust, moment) for path in expand(paths)]
    if as_json:
        click.echo(json.dumps({"files": [verdict.as_json() for verdict in verdicts]}))
    else:
        for verdict in verdicts:
            click.echo(_line(verdict))
    if not all(verdict.readable for verdict in verdicts):
        ctx.exit(CannotRun.exit_code)
    ctx.exit(0 if all(verdict.verdict is Outcome.PASSED for verdict in verdicts) else 1)


def _verdict(path: Path, trust: Trust, at: datetime) -> FileVerdict:
    """The verdict on one file; what cannot be opened is in the document like what cannot be parsed."""
    try:
        return verify_file(path, trust, at)
    except OSError as error:
        detail = f"cannot be read: {error.strerror or error}"
        return FileVerdict(str(path), Outcome.FAILED, Reason.MALFORMED, detail, checks_not_run(), (), readable=False)


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
