"""The files of a report: for programs, for people who read text, and for people who look."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.evaluation.gate import markdown
from lab.evaluation.page import page
from lab.evaluation.report import Report


def write(report: Report, folder: Path, title: str, gate: Mapping[str, Any] | None = None) -> None:
    """Write report.json, report.md and report.html, each whole or not at all; the folder is made if missing.

    Args:
        report: what was found.
        folder: for the files.
        title: of what was evaluated.
        gate: what a threat model says of it, where it was judged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    document = report.document() | ({} if gate is None else {"gate": gate})
    told = report.markdown(title) + ("" if gate is None else "\n\n" + markdown(gate))
    files = {
        "report.json": json.dumps(document, indent=2, allow_nan=False) + "\n",
        "report.md": told + "\n",
        "report.html": page(document, title),
    }
    for name, text in files.items():
        part = folder / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / name)
