"""What a fit says when it is done, for people."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from detectors.calibration import Guarantee
from detectors.worth import fewest_to_compare
from lab.fitting import Fitted
from lab.purity import Doubts

NAMED_MAX = 20
"""Scans that are named one by one."""
ENDS = (
    "p-values end with the ranks: the loudest of the scans that the promise rests on is louder than the others' tail "
    "allows. Single scans are judged as ever; large studies and long series find less (docs/calibration.md)."
)


def show(fitted: Fitted) -> None:
    """Print what each detector is worth, as measured on scans that nothing was fitted on, and what is promised."""
    console = Console()
    _show_worth(console, fitted)
    _show_rates(console, fitted.measured)
    if not fitted.ensemble.conformal.goes_on:
        console.print(ENDS, soft_wrap=True)
    console.print(promised(json.loads(fitted.manifest)), soft_wrap=True)


def promised(facts: Mapping[str, Any]) -> str:
    """What the calibration promises, of a manifest: the rate, how surely, and on how many scans."""
    confident = Guarantee(facts["guarantee"]) is Guarantee.CONFIDENT
    surely = "with 95 % confidence" if confident else "on average over calibrations"
    return f"guarantee: {100 * facts['fpr']:g} % of clean scans flagged at most, {surely}, {facts['n_b']} scans"


def not_compared(facts: Mapping[str, Any]) -> str:
    """Why members were not compared, of a manifest."""
    least = fewest_to_compare(facts["fpr"])
    if facts["n_a"] < least:
        why = f"A has {facts['n_a']} clean scans, and {least} are needed at {100 * facts['fpr']:g} %"
    else:
        why = "hardly an attack on the scans of A succeeded"
    return f"members were not compared: {why}. All of them decide; what each adds is not known."


def _show_worth(console: Console, fitted: Fitted) -> None:
    """What each deciding detector adds."""
    if (mondrian := fitted.ensemble.mondrian) is not None:
        for category, size in mondrian.taxonomy.sizes.items():
            console.print(f"calibrated for itself on {size} scans: {', '.join(category)}")
    if fitted.worths:
        table = Table(
            title="deciding detectors, on development attacks\n"
            "gain: what would be missed without it; price: what it lets past of one who knows the detectors"
        )
        _columns(table, fitted.worths, ("alone", "gain", "price"))
        for name, each in fitted.worths.items():
            table.add_row(name, f"{each.alone:.3f}", f"{each.gain:+.3f}", _signed(each.price))
        console.print(table)
    else:
        console.print(not_compared(json.loads(fitted.manifest)), soft_wrap=True)


def _show_rates(console: Console, measured: Mapping[str, Any]) -> None:
    """What each detector flags."""
    if not measured:
        console.print("The data has no test split: nothing was measured.")
        return
    table = Table(title=f"{measured['n']} test scans; share flagged at the target rate")
    _columns(table, measured["fpr"], ("clean", *(f"PGD {level}" for level in measured["pgd"])))
    for name, clean in measured["fpr"].items():
        rates = [_rate(entry.get("tpr", {}).get(name)) for entry in measured["pgd"].values()]
        table.add_row(name, _rate(clean), *rates)
    console.print(table)


def _columns(table: Table, names: Iterable[str], rest: Sequence[str]) -> None:
    """A column of whole names, however narrow the window, and the others."""
    table.add_column("detector", no_wrap=True, min_width=max(map(len, names)))
    for column in rest:
        table.add_column(column)


def doubted(doubts: Doubts, a: Sequence[str], b: Sequence[str]) -> str:
    """What is said of scans that are too loud to be clean: which, and what to do; ids of A and of B are given."""
    named = [*(f"train {a[k]}" for k in doubts.a), *(f"val {b[k]}" for k in doubts.b)]
    more = f" and {len(named) - NAMED_MAX} more" if len(named) > NAMED_MAX else ""
    return (
        f"{len(named)} scans are louder than clean ones should be: {', '.join(named[:NAMED_MAX])}{more}. Whoever can "
        "put attacked scans among the clean ones raises the thresholds. Look at these scans before the artefact is "
        "used: take out what does not belong, and fit anew."
    )


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def _rate(found: dict[str, Any] | None) -> str:
    """A rate with its interval, or a dash where nothing was there to flag."""
    return f"{found['rate']:.3f} [{found['low']:.3f}, {found['high']:.3f}]" if found else "-"
