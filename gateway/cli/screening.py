"""`scanward screen`: sends files and folders to a gateway and shows what became of each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from gateway.cli import CannotRun
from gateway.client import Client, ClientError, Screened, StudyAnswer, files_in

_COLOURS = {"admit": "green", "admit_denoised": "cyan", "quarantine": "yellow", "reject": "red", "error": "bold red"}
T = TypeVar("T")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--address", required=True, envvar="SCANWARD_ADDRESS", help="HOST:PORT of the gateway.")
@click.option("--route", default="", help="Route; not needed where the sender has only one.")
@click.option("--study", "as_study", is_flag=True, help="The files are one study: sent on one stream, judged as one.")
@click.option("--token-file", type=_FILE, help="File with the bearer token; else SCANWARD_TOKEN is taken.")
@click.option("--ca", type=_FILE, help="CA of the gateway's certificate, PEM; without it only loopback is talked to.")
@click.option("--cert", type=_FILE, help="Client certificate, PEM.")
@click.option("--key", type=_FILE, help="Its private key, PEM.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def screen(
    ctx: click.Context,
    *,
    paths: tuple[Path, ...],
    address: str,
    route: str,
    as_study: bool,
    token_file: Path | None,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    as_json: bool,
) -> None:
    """Have a gateway examine DICOM files, or all of them in a folder; a row a scan.

    Exit 0: all admitted; 1: some held or rejected; 2: some could not be examined.
    """
    files = [file for path in paths for file in files_in(path)]
    if not files:
        raise CannotRun("there is no DICOM file in what was given")
    try:
        with Client(
            address, token=_token(token_file), ca=_bytes(ca), certificate=_bytes(cert), private_key=_bytes(key)
        ) as client:
            if as_study:
                results, study = _parted(_collected(client.study(files, route), len(files), quiet=as_json))
            else:
                results, study = _collected(client.screen(files, route), len(files), quiet=as_json), None
    except ClientError as error:
        raise CannotRun(error.message) from error
    if as_json:
        ok = _exit_code(results, study) == 0
        document = {"scans": [_document(result) for result in results], "ok": ok}
        click.echo(json.dumps(document if study is None else {**document, "study": _study_document(study)}))
    else:
        _show(results)
        if study is not None:
            click.echo(_study_sentence(study))
    ctx.exit(_exit_code(results, study))


def _exit_code(results: list[Screened], study: StudyAnswer | None) -> int:
    if any(result.answer is None for result in results):
        return CannotRun.exit_code
    admitted = all(result.answer is not None and result.answer.admitted for result in results)
    return 0 if admitted and (study is None or study.admitted) else 1


def _parted(results: list[Screened | StudyAnswer]) -> tuple[list[Screened], StudyAnswer]:
    """The instances, and the study that they are."""
    *instances, study = results
    assert isinstance(study, StudyAnswer)
    return [each for each in instances if isinstance(each, Screened)], study


def _study_sentence(study: StudyAnswer) -> str:
    reasons = f" ({', '.join(study.reasons)})" if study.reasons else ""
    together = "" if study.p_value is None else f"; p of all slices together {study.p_value:.3g}"
    return f"study of {study.instances} instances: {study.disposition}{reasons}{together}; record {study.log_index}"


def _study_document(study: StudyAnswer) -> dict[str, Any]:
    """The study of the JSON document; what this caller may not see is null."""
    return {
        "study_sha256": study.study_sha256,
        "disposition": study.disposition,
        "reasons": list(study.reasons),
        "instances": study.instances,
        "p_value": study.p_value,
        "suspect": [each.scan_sha256 for each in study.slices if each.suspect],
        "log_index": study.log_index,
    }


def _collected(results: Iterable[T], total: int, *, quiet: bool) -> list[T]:
    """All results, with a bar on the terminal while they come."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("screening"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=quiet or not console.is_terminal,
    )  # fmt: skip
    with bar:
        return list(bar.track(results, total=total))


def _show(results: list[Screened]) -> None:
    """A table for people; tab-separated lines where stdout is not a terminal, since a table would be cut there."""
    console = Console()
    rows = [_row(result) for result in results]
    if not console.is_terminal:
        for row in rows:
            sys.stdout.write("\t".join(row) + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("scan", "disposition", "reason", "diagnosis"):
        table.add_column(heading, overflow="fold")
    table.add_column("ms", justify="right")
    table.add_column("record", justify="right")
    table.add_column("what is wrong", overflow="fold")
    common = _common_folder(results)
    for path, disposition, *others in rows:
        table.add_row(
            os.path.relpath(path, common),
            Text(disposition, style=_COLOURS.get(disposition, "")),
            *(Text(cell) for cell in others),
        )
    console.print(table)
    held = sum(result.answer is not None and not result.answer.admitted for result in results)
    failed = sum(result.answer is None for result in results)
    admitted = len(results) - held - failed
    console.print(
        f"{len(results)} scans in {common}: {admitted} admitted, {held} held or rejected, {failed} not examined"
    )


def _common_folder(results: list[Screened]) -> str:
    """What every path starts with: said once, it leaves the table room for the reasons."""
    return os.path.commonpath([str(result.path.absolute().parent) for result in results])


def _row(result: Screened) -> list[str]:
    """Path, disposition, reason, diagnosis, milliseconds, record, and what is wrong."""
    took = f"{result.seconds * 1000:.0f}"
    if result.answer is None:
        error = result.error
        return [str(result.path), "error", error.status if error else "", "", took, "", error.message if error else ""]
    answer, diagnosis = result.answer, ""
    if (prediction := answer.prediction) is not None:
        score = next((each.score for each in prediction.scores if each.name == prediction.label), float("nan"))
        diagnosis = f"{prediction.label} {score:.2f}"
    # That later stages were skipped follows from the reason beside it; alone it is the reason.
    reasons = ",".join(reason for reason in answer.reasons if reason != "not_run" or len(answer.reasons) == 1)
    return [str(result.path), answer.disposition, reasons, diagnosis, took, str(answer.log_index), answer.detail]


def _document(result: Screened) -> dict[str, Any]:
    """One scan of the JSON document; what was not answered is null."""
    answer, error = result.answer, result.error
    prediction = answer.prediction if answer else None
    return {
        "path": str(result.path),
        "scan_sha256": answer.scan_sha256 if answer else None,
        "disposition": answer.disposition if answer else None,
        "reasons": list(answer.reasons) if answer else [],
        "detail": answer.detail if answer else "",
        "prediction": None
        if prediction is None
        else {"label": prediction.label, "scores": {each.name: each.score for each in prediction.scores}},
        "log_index": answer.log_index if answer else None,
        "ms": round(result.seconds * 1000, 3),
        "error": None if error is None else {"status": error.status, "message": error.message},
    }


def _token(file: Path | None) -> str | None:
    if file is not None:
        return file.read_text("ascii").strip()
    return os.environ.get("SCANWARD_TOKEN")


def _bytes(file: Path | None) -> bytes | None:
    return file.read_bytes() if file is not None else None
