"""The tables of the page: compact, and shaded where something was missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lab.evaluation.style import TINTS
from lab.evaluation.words import budget, called, interval, share

Document = Mapping[str, Any]
ENSEMBLE = "ensemble"


def summary(document: Document) -> str:
    """One row for each attack at each budget: what it does, and what is left of it."""
    denoisers = list(document["denoised_clean_accuracy"])
    head = ["attack", "tier", "succeeds", "misread and admitted", "flagged", "admitted and read rightly"]
    head += [f"after {name}" for name in denoisers] + ["largest change", "SSIM"]
    rows = []
    for entry in document["attacks"]:
        caught = entry["ensemble"]["at_target"] if entry["ensemble"] else None
        admitted = entry["accuracy_of_admitted"]
        cells = [
            f"<td>{escape(called(entry))}</td><td>{entry['tier']}</td>",
            f"<td>{entry['n_success']}/{entry['n_attacked']}</td>",
            f'<td class="{_tint(entry["evasion"])}">{interval(entry["adversarial_risk"])}</td>',
            f"<td>{interval(caught)}</td><td>{'none admitted' if admitted is None else share(admitted)}</td>",
            *(f"<td>{share(entry['denoised_accuracy'][name])}</td>" for name in denoisers),
            f"<td>{entry['norm_linf_levels']:.1f}</td><td>{entry['ssim']:.3f}</td>",
        ]
        rows.append(f'<tr class="{escape(entry["tier"], quote=True)}">{"".join(cells)}</tr>')
    told = (
        f"<p>Flagged: of the attacks that succeed, at p &le; {document['target_fpr']:g}. Brackets are 95&nbsp;% "
        "intervals, in per cent. The largest change is in grey levels. Marked at the left: the attacker who holds the "
        "detectors.</p>"
    )
    return f"<h2>Every attack</h2>{told}{_table(head, rows)}"


def detection(document: Document, entries: Sequence[Document]) -> str:
    """One attack: what each detector sees at each of its budgets."""
    seen = [entry for entry in entries if entry["ensemble"] is not None]
    if not seen:
        return '<p class="note">It succeeded nowhere: there was nothing to detect.</p>'
    weights = document["detectors"]
    order = sorted(weights, key=lambda name: (-weights[name], -_mean(seen, name), name))
    top = "".join(
        f'<th colspan="3" class="first">{budget(each)}, {each["n_success"]} of {each["n_attacked"]}</th>'
        for each in seen
    )
    under = '<th class="first">1 %</th><th>5 %</th><th>AUROC</th>' * len(seen)
    rows = []
    for name in (ENSEMBLE, *order):
        worths = [each["ensemble"] if name == ENSEMBLE else each["detectors"][name] for each in seen]
        cells = "".join(
            f'<td class="first {_tint(1 - worth["tpr_at_fpr1"])}">{100 * worth["tpr_at_fpr1"]:.0f}</td>'
            f'<td class="{_tint(1 - worth["tpr_at_fpr5"])}">{100 * worth["tpr_at_fpr5"]:.0f}</td>'
            f'<td class="{_tint(2 * (1 - worth["auroc"]))}">{worth["auroc"]:.3f}</td>'
            for worth in worths
        )
        said = name if name == ENSEMBLE else f"{name} ({weights[name]:.0%})" if weights[name] else name
        rows.append(f'<tr class="{"main" if name == ENSEMBLE else ""}"><td>{escape(said)}</td>{cells}</tr>')
    head = f'<tr><th rowspan="2">detector (weight)</th>{top}</tr><tr>{under}</tr>'
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>'


def calm(document: Document) -> str:
    """What each detector flags though it is harmless, in per cent."""
    changes = {**document["fpr_by_detector"], **document["null_attack"]["by_detector"]}
    weights, limit = document["detectors"], 2 * document["target_fpr"]
    rows = []
    for name in (ENSEMBLE, *sorted(weights, key=lambda name: (-weights[name], name))):
        cells = "".join(
            f'<td class="{_tint(5 * (rates[name] - limit))}">{100 * rates[name]:.1f}</td>' for rates in changes.values()
        )
        rows.append(f'<tr class="{"main" if name == ENSEMBLE else ""}"><td>{escape(name)}</td>{cells}</tr>')
    return _table(["per cent flagged", *changes], rows)


def accuracy(document: Document) -> str:
    """How the model reads clean scans, without and with each denoiser."""
    read = {"as they are": document["clean_accuracy"]}
    read |= {f"after {name}": rate for name, rate in document["denoised_clean_accuracy"].items()}
    cells = "".join(f"<td>{share(rate)}</td>" for rate in read.values())
    return _table(["clean scans", *read], [f"<tr><td>read rightly</td>{cells}</tr>"])


def worst_case(rows: Sequence[Document]) -> str:
    """By budget, the scans that one attack or another gets through."""
    told = [
        f"<tr><td>{row['eps']:g}</td><td>{interval(row['uninformed'])}</td><td>{interval(row['any'])}</td></tr>"
        for row in rows
    ]
    return _table(["levels, at most", "without the informed attacker", "with him"], told)


def checks(found: Sequence[Document]) -> str:
    """The claims of a threat model, those that are not met first."""
    order = {"failed": 0, "skipped": 1, "passed": 2}
    rows = [
        f'<tr class="{each["outcome"]}"><td>{escape(each["name"])}</td><td><b>{each["outcome"]}</b></td>'
        f'<td class="words">{escape(each["says"])}</td></tr>'
        for each in sorted(found, key=lambda each: order[each["outcome"]])
    ]
    return _table(["claim", "", "measured"], rows)


def _mean(entries: Sequence[Document], name: str) -> float:
    return float(sum(each["detectors"][name]["tpr_at_fpr1"] for each in entries)) / len(entries)


def _tint(missed: float) -> str:
    """The class of a cell; none where nothing was missed."""
    step = min(TINTS - 1, round(missed * (TINTS - 1) + 0.3)) if missed > 0 else 0
    return f"t{step}" if step else ""


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
