"""What a fit says when it is done, for people."""

from typing import Any

from rich.console import Console
from rich.table import Table

from lab.fitting import Fitted


def show(fitted: Fitted) -> None:
    """Print what each detector is worth, as measured on scans that nothing was fitted on."""
    measured = fitted.measured
    console = Console()
    if (mondrian := fitted.ensemble.mondrian) is not None:
        for category, size in mondrian.taxonomy.sizes.items():
            console.print(f"calibrated for itself on {size} scans: {', '.join(category)}")
    if fitted.worths:
        table = Table(title="deciding detectors, on development attacks; gain: what would be missed without it")
        for column in ("detector", "alone", "gain"):
            table.add_column(column)
        for name, each in fitted.worths.items():
            table.add_row(name, f"{each.alone:.3f}", f"{each.gain:+.3f}")
        console.print(table)
    if not measured:
        console.print("The data has no test split: nothing was measured.")
        return
    table = Table(title=f"{measured['n']} test scans; share flagged at the target rate")
    for column in ("detector", "clean", *(f"PGD {level}" for level in measured["pgd"])):
        table.add_column(column)
    for name, clean in measured["fpr"].items():
        rates = [_rate(entry.get("tpr", {}).get(name)) for entry in measured["pgd"].values()]
        table.add_row(name, _rate(clean), *rates)
    console.print(table)


def _rate(found: dict[str, Any] | None) -> str:
    """A rate with its interval, or a dash where nothing was there to flag."""
    return f"{found['rate']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" if found else "-"
