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
from gateway.cli.connecting import connection, connection_options
from gateway.client.client import Client, ClientError, Screened, StudyAnswer, files_in

_COLOURS = {"admit": "green", "admit_denoised": "cyan", "quarantine": "yellow", "reject": "red", "error": "bold red"}
_HEADINGS = (
    "scan", "disposition", "reason", "diagnosis", "ms", "record", "answered", "quarantine id", "what is wrong",
)  # fmt: skip
T = TypeVar("T")


@click.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@connection_options
@click.option("--route", default="", help="Route; not needed where the sender has only one.")
@click.option("--study", "as_study", is_flag=True, help="The files are one study: sent on one stream, judged as one.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")
@click.pass_context
def screen(
    ctx: click.Context,
    /,
    *,
    paths: tuple[Path, ...],
    route: str,
    as_study: bool,
    as_json: bool,
    **where: Any,
) -> None:
    """Have a gateway examine DICOM files, or all of them in a folder; a row a scan.

    Exit 0: all admitted; 1: some held or rejected; 2: some could not be examined.
    """
    found = [files_in(path) for path in paths]
    files, skipped = [file for scans, _ in found for file in scans], sum(count for _, count in found)
    problem = "" if files else "there is no DICOM file in what was given"
    answered: list[Screened | StudyAnswer] = []
    try:
        with Client(**connection(**where)) as client:
            coming = client.study(files, route) if as_study else client.screen(files, route)
            _collect(coming if files else (), len(files), answered, quiet=as_json)
    except ClientError as error:
        problem = problem or error.message
    results, study = _parted(answered)
    code = CannotRun.exit_code if problem else _exit_code(results, study)
    if as_json:
        document = {"scans": [_document(result) for result in results], "skipped": skipped, "ok": code == 0}
        click.echo(json.dumps(document if study is None else {**document, "study": _study_document(study)}))
    elif results:
        _show(results)
        if study is not None:
            click.echo(_study_sentence(study))
        if skipped:
            click.echo(f"{skipped} files that are not DICOM were skipped", err=True)
    if problem:
        raise CannotRun(problem)
    ctx.exit(code)


def _exit_code(results: list[Screened], study: StudyAnswer | None) -> int:
    if any(result.answer is None for result in results):
        return CannotRun.exit_code
    admitted = all(result.answer is not None and result.answer.admitted for result in results)
    return 0 if admitted and (study is None or study.admitted) else 1


def _parted(answered: list[Screened | StudyAnswer]) -> tuple[list[Screened], StudyAnswer | None]:
    """The instances, and the study that they are, where that was asked for and answered."""
    study = next((each for each in answered if isinstance(each, StudyAnswer)), None)
    return [each for each in answered if isinstance(each, Screened)], study


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


def _collect(results: Iterable[T], total: int, into: list[T], *, quiet: bool) -> None:
    """Each result as it comes, with a bar on the terminal; what came before a failure stays."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("screening"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=quiet or not console.is_terminal,
    )  # fmt: skip
    with bar:
        for result in bar.track(results, total=total):
            into.append(result)  # noqa: PERF402 - one by one: the next may be an error


def _show(results: list[Screened]) -> None:
    """A table for people; tab-separated lines where stdout is not a terminal, since a table would be cut there."""
    console = Console()
    rows = [_row(result) for result in results]
    if not console.is_terminal:
        for row in (_HEADINGS, *rows):
            sys.stdout.write("\t".join(row) + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right" if heading in {"ms", "record"} else "left", overflow="fold")
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
    """One cell for each of `_HEADINGS`."""
    took = f"{result.seconds * 1000:.0f}"
    if result.answer is None:
        error = result.error
        status, message = (error.status, error.message) if error else ("", "")
        return [str(result.path), "error", status, "", took, "", "", "", message]
    answer, diagnosis = result.answer, ""
    if (prediction := answer.prediction) is not None:
        score = next((each.score for each in prediction.scores if each.name == prediction.label), float("nan"))
        diagnosis = f"{prediction.label} {score:.2f}"
    # That later stages were skipped follows from the reason beside it; alone it is the reason.
    reasons = ",".join(reason for reason in answer.reasons if reason != "not_run" or len(answer.reasons) == 1)
    released = f"released by {', '.join(answer.released_by)}" if answer.released_by else ""
    answered = "; ".join(word for word in ("before" if answer.earlier else "", released) if word)
    record = str(answer.log_index)
    held, detail = answer.quarantine_id, answer.detail
    return [str(result.path), answer.disposition, reasons, diagnosis, took, record, answered, held, detail]


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
        "quarantine_id": answer.quarantine_id or None if answer else None,
        "earlier": answer.earlier if answer else False,
        "released_by": list(answer.released_by) if answer else [],
        "ms": round(result.seconds * 1000, 3),
        "error": None if error is None else {"status": error.status, "message": error.message},
    }
