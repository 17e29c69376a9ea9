"""What the demo found, as a table for people and as one JSON document."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gateway.client.client import Answer
from lab.demo.prepare import Prepared
from lab.demo.rows import Row

UNSAFE_ADMISSIONS = "scanward_unsafe_admissions_total{setting=signature.unsigned}"
WIDTH = 118
"""Characters of a line where no terminal says how wide it is."""
_STYLE = {"admit": "green", "admit_denoised": "cyan", "quarantine": "yellow", "reject": "red"}


@dataclass(frozen=True, slots=True)
class Shown:
    """One row of the table as it turned out."""

    row: Row
    scan: Prepared
    signature: str
    """`passed`, else the reason of the signature stage."""
    p_value: float | None
    disposition: str
    reason: str
    """First reason of the answer; `ok` where there is none."""
    diagnosis: str | None
    """What the model says from behind the gateway; None where it was not asked."""
    receipt_ok: bool
    ms: float

    @classmethod
    def of(cls, row: Row, scan: Prepared, answer: Answer, *, receipt_ok: bool, ms: float) -> Self:
        """Take from an answer what the table shows."""
        by_stage = {finding.stage: finding for finding in answer.findings}
        signature, detection = by_stage.get("signature"), by_stage.get("detection")
        return cls(
            row=row,
            scan=scan,
            signature="-" if signature is None else "passed" if signature.outcome == "passed" else signature.reason,
            p_value=detection.p_value if detection is not None and detection.HasField("p_value") else None,
            disposition=answer.disposition,
            reason=answer.reasons[0] if answer.reasons else "ok",
            diagnosis=answer.prediction.label if answer.prediction is not None else None,
            receipt_ok=receipt_ok,
            ms=ms,
        )

    @classmethod
    def unanswered(cls, row: Row, scan: Prepared, why: str) -> Self:
        """A row whose call failed."""
        return cls(row, scan, "-", None, "-", why, None, receipt_ok=False, ms=0.0)

    @property
    def ok(self) -> bool:
        """Whether the answer is the one that the row must get, with a good receipt."""
        return self.receipt_ok and (self.disposition, self.reason) == (self.row.disposition, self.row.reason)

    def document(self) -> dict[str, Any]:
        """The row's part of the JSON document (architecture 5.5)."""
        return {
            "name": self.row.name,
            "scan_sha256": self.scan.sha256,
            "signature": self.signature,
            "p_value": self.p_value,
            "expected": {"disposition": self.row.disposition, "reason": self.row.reason},
            "disposition": self.disposition,
            "reason": self.reason,
            "diagnosis_undefended": self.scan.diagnosis_undefended,
            "diagnosis": self.diagnosis,
            "receipt_ok": self.receipt_ok,
            "ms": round(self.ms, 1),
            "ok": self.ok,
        }


@dataclass(frozen=True, slots=True)
class Report:
    """The whole demo."""

    title: str
    rows: tuple[Shown, ...]
    audit_records: int
    audit_verified: bool
    metrics: Mapping[str, float]
    """By name and labels: what this run added."""
    pictures: tuple[Path, ...]
    configuration: Path | None
    """The configuration that was kept, where one was."""
    seconds: float

    @property
    def unsafe_counted(self) -> bool:
        """Whether each unsigned scan that was let by is in the counter: no more, no fewer."""
        let_by = sum(shown.signature == "unsigned" and shown.disposition.startswith("admit") for shown in self.rows)
        return self.metrics.get(UNSAFE_ADMISSIONS, 0.0) == let_by

    @property
    def ok(self) -> bool:
        """Whether everything went as it must."""
        return all(shown.ok for shown in self.rows) and self.audit_verified and self.unsafe_counted

    def document(self) -> dict[str, Any]:
        """The JSON document of architecture 5.5."""
        return {
            "rows": [shown.document() for shown in self.rows],
            "audit": {"records": self.audit_records, "verified": self.audit_verified},
            "images": [str(picture) for picture in self.pictures],
            "ok": self.ok,
        }


def show(report: Report) -> None:
    """Print the table, what it means, and where to look next."""
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    console.print(f"\n[bold]Scanward[/bold] in front of a diagnostic model, on {report.title}\n")
    console.print(_table(report))
    console.print(
        "Without: what the model says of the scan when nothing stands in front of it. Held and rejected scans never "
        "reach the model.",
        style="dim",
    )
    for shown in report.rows:
        if shown.scan.note:
            console.print(f"  [bold]{shown.row.name}[/bold]: {escape(shown.scan.note)}", highlight=False)
    verified = "[green]verified[/green]" if report.audit_verified else "[red]BROKEN[/red]"
    console.print(f"\nAudit log: {report.audit_records} records, Merkle tree and checkpoints {verified}.")
    console.print("Metrics that this run moved:")
    for name, change in report.metrics.items():
        console.print(f"  {name} [bold]+{change:g}[/bold]", highlight=False)
    console.print("Pictures (before, after, where the detectors disagree):")
    for picture in report.pictures:
        console.print(f"  {picture}", highlight=False)
    if report.configuration is not None:
        console.print(f"Start this hospital again: scanward serve --config {report.configuration}", highlight=False)
    outcome = "[green]Every scan was answered as it must be[/green]" if report.ok else "[red]Not as it must be[/red]"
    console.print(f"\n{outcome} ({report.seconds:.0f} s).")


def _table(report: Report) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("scan", no_wrap=True)
    table.add_column("signature", no_wrap=True)
    table.add_column("p-value", justify="right")
    table.add_column("disposition")
    table.add_column("diagnosis without")
    table.add_column("with Scanward")
    table.add_column("ms", justify="right")
    table.add_column("")
    for shown in report.rows:
        style = _STYLE.get(shown.disposition, "red")
        reason = "" if shown.reason == "ok" else f" ({shown.reason})"
        undefended = shown.scan.diagnosis_undefended or "-"
        if shown.scan.fooled:
            undefended = f"[red]{undefended} (wrong)[/red]"
        table.add_row(
            shown.row.name,
            shown.signature,
            "-" if shown.p_value is None else f"{shown.p_value:.2g}",
            f"[{style}]{shown.disposition}{reason}[/{style}]",
            undefended,
            shown.diagnosis or "-",
            f"{shown.ms:.0f}",
            "[green]ok[/green]" if shown.ok else f"[red]must be {shown.row.disposition} ({shown.row.reason})[/red]",
        )
    return table
