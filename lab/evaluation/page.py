"""The report of an evaluation as one HTML page for a security officer: no script, nothing loaded, good on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lab.evaluation.charts import Point, bars, lines

Document = Mapping[str, Any]
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: #222; background: #fff;
       max-width: 980px; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
.facts { color: #666; font-size: .88rem; overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 1rem; margin: 1.6rem 0; }
.card { border: 1px solid #ddd; border-radius: 8px; padding: .9rem 1rem; }
.card b { display: block; font-size: 1.6rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.card.warn { border-color: #c1502e; } .card.warn b { color: #a5401f; }
.card span { font-size: .85rem; color: #555; }
.honest { border-left: 4px solid #c1502e; padding: .2rem 0 .2rem 1rem; margin: 1.4rem 0; }
svg { width: 100%; max-width: 720px; height: auto; font: 12px system-ui, sans-serif; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e6e6e6; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
thead th { color: #555; font-weight: 600; } tr.adaptive td { background: #fbf1ee; } td.ensemble { font-weight: 600; }
@media print { body { margin: 0; max-width: none; } .card, svg, tr { break-inside: avoid; } }
"""


def page(document: Document, title: str) -> str:
    """The page of a report.json.

    Args:
        document: as `Report.document` makes it.
        title: of what was evaluated.
    """
    attacks: Sequence[Document] = document["attacks"]
    body = [
        f"<h1>{escape(title)}</h1>",
        _facts(document),
        _cards(document, attacks),
        _honest(attacks),
        "<h2>What gets through</h2>",
        "<p>Misread <em>and</em> not flagged, of all attacked scans, by budget. Whiskers are 95&nbsp;% intervals.</p>",
        lines(_evasion(attacks), "budget, 8-bit grey levels of the window", "misread and admitted"),
        "<h2>What is caught</h2>",
        f"<p>Of the attacks that succeed, the share that the ensemble flags at p &le; {document['target_fpr']:g}.</p>",
        lines(_caught(attacks), "budget, 8-bit grey levels of the window", "flagged"),
        "<h2>What is flagged though harmless</h2>",
        bars(_harmless(document), document["target_fpr"], "flagged though harmless"),
        "<h2>Every detector, every attack</h2>",
        "<p>Per cent of successful attacks flagged at the target rate, and AUROC against clean scans. Shaded: the "
        "attacker who holds the detectors.</p>",
        _table(document, attacks),
        f'<p class="facts">{escape(document["threat_model"])}</p>',
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _facts(document: Document) -> str:
    told = {
        "grade": document["grade"],
        "seeds": ", ".join(map(str, document["seeds"])),
        "clean test scans": document["n_clean"],
        "model": document["model"][:16],
        "profile": document["profile"][:16],
        "data": document["dataset"][:16],
    }
    return f'<p class="facts">{escape("; ".join(f"{name} {value}" for name, value in told.items()))}</p>'


def _cards(document: Document, attacks: Sequence[Document]) -> str:
    """The four figures to remember."""
    alarm = document["fpr_measured"]
    cards = [
        (f"{document['clean_accuracy']:.1%}", "of clean scans read rightly", False),
        (
            f"{alarm['rate']:.1%}",
            f"of clean scans flagged; promised {document['target_fpr']:.1%} [{alarm['low']:.1%}, {alarm['high']:.1%}]",
            alarm["low"] > document["target_fpr"],
        ),
    ]
    for tier, words in (("oblivious", "who does not know the detectors"), ("adaptive", "who holds the detectors")):
        worst = _worst(attacks, tier)
        if worst is not None:
            told = f"worst evasion by an attacker {words}: {_called(worst)}"
            cards.append((f"{worst['evasion']:.1%}", told, worst["evasion"] > 0.1))
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card{" warn" if warn else ""}"><b>{figure}</b><span>{escape(words)}</span></div>'
            for figure, words, warn in cards
        )
        + "</div>"
    )


def _honest(attacks: Sequence[Document]) -> str:
    """What an informed attacker achieves, in words."""
    worst = _worst(attacks, "adaptive")
    if worst is None:
        told = (
            "No attacker who knows the detectors was tried. Nothing here says what he would achieve; expect much more "
            "than what is shown."
        )
    else:
        risk = worst["adversarial_risk"]
        told = (
            f"An attacker who holds model, detectors and threshold gets {worst['evasion']:.0%} "
            f"[{risk['low']:.0%}, {risk['high']:.0%}] of {worst['n_attacked']} scans misread and admitted at "
            f"{worst['eps']:g} grey levels. It is the best that one attack found, so a lower bound. Detectors raise "
            "the price; what a signature covers cannot be changed at all."
        )
    return f'<p class="honest">{escape(told)}</p>'


def _evasion(attacks: Sequence[Document]) -> dict[str, list[Point]]:
    return _by_name(attacks, lambda entry: entry["adversarial_risk"])


def _caught(attacks: Sequence[Document]) -> dict[str, list[Point]]:
    def found(entry: Document) -> Mapping[str, float] | None:
        return entry["ensemble"]["at_target"] if entry["ensemble"] else None

    return _by_name(attacks, found)


def _by_name(attacks: Sequence[Document], rate_of: Any) -> dict[str, list[Point]]:
    """One line for each attack that has budgets."""
    series: dict[str, list[Point]] = {}
    for entry in sorted((each for each in attacks if each["eps"] is not None), key=lambda each: each["eps"]):
        points, rate = series.setdefault(entry["name"], []), rate_of(entry)
        if rate is not None:
            points.append(_point(rate, entry["eps"]))
    return dict(sorted(series.items(), key=lambda item: item[0] != "adaptive"))


def _harmless(document: Document) -> dict[str, Point]:
    told = {"clean": document["fpr_measured"], **document["null_attack"]["by_change"], **document["shift"]}
    return {name: _point(rate, 0.0) for name, rate in told.items()}


def _table(document: Document, attacks: Sequence[Document]) -> str:
    names = list(document["detectors"])
    head = ["attack", "tier", "successes", "ensemble", *names]
    rows = []
    for entry in attacks:
        cells = [_called(entry), entry["tier"], f"{entry['n_success']}/{entry['n_attacked']}"]
        worths = [entry["ensemble"], *(entry["detectors"][name] for name in names)]
        shown = [escape(cell) for cell in cells]
        shown += [f"{100 * each['tpr_at_target']:.0f} &middot; {each['auroc']:.2f}" if each else "-" for each in worths]
        classes = ["", "", "", "ensemble", *[""] * len(names)]
        row = "".join(f'<td class="{kind}">{cell}</td>' for cell, kind in zip(shown, classes, strict=True))
        rows.append(f'<tr class="{escape(entry["tier"], quote=True)}">{row}</tr>')
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _worst(attacks: Sequence[Document], tier: str) -> Document | None:
    """The entry of a tier with the most evasion."""
    return max((each for each in attacks if each["tier"] == tier), key=lambda each: each["evasion"], default=None)


def _called(entry: Document) -> str:
    return str(entry["name"]) if entry["eps"] is None else f"{entry['name']}, {entry['eps']:g} levels"


def _point(rate: Mapping[str, float], x: float) -> Point:
    return Point(x, rate["rate"], rate["low"], rate["high"])
