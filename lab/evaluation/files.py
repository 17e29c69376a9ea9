"""The files of a report: for programs, for people who read text, and for people who look."""

from __future__ import annotations

import json
from pathlib import Path

from lab.evaluation.page import page
from lab.evaluation.report import Report


def write(report: Report, folder: Path, title: str) -> None:
    """Write report.json, report.md and report.html, each whole or not at all; the folder is made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    document = report.document()
    files = {
        "report.json": json.dumps(document, indent=2, allow_nan=False) + "\n",
        "report.md": report.markdown(title) + "\n",
        "report.html": page(document, title),
    }
    for name, text in files.items():
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)
