"""The report of an evaluation as one HTML page for a security officer: no script, nothing loaded, good on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lab.evaluation import chapters, tables
from lab.evaluation.style import POLICY, STYLE
from lab.evaluation.words import called, share, worst

Document = Mapping[str, Any]


def page(document: Document, title: str) -> str:
    """The page of a report.json.

    Args:
        document: as `Report.document` makes it, with `gate` where it was judged by a threat model.
        title: of what was evaluated.
    """
    attacks: Sequence[Document] = document["attacks"]
    body = [
        f"<h1>{escape(title)}</h1>",
        _facts(document),
        _verdict(document["gate"]) if document.get("gate") else "",
        _cards(document, attacks),
        _honest(document, attacks),
        chapters.worst_case(document),
        chapters.getting_through(attacks),
        chapters.convergence(attacks),
        chapters.caught(document),
        chapters.harmless(document),
        tables.summary(document),
        chapters.each_attack(document),
        f"<h2>Threat model</h2><p>{escape(document['threat_model'])}</p>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY, quote=True)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(body)}</body></html>\n"
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
    if document["attacks_left"]:
        told["attacks still to come"] = document["attacks_left"]
    return f'<p class="facts">{escape("; ".join(f"{name} {value}" for name, value in told.items()))}</p>'


def _verdict(gate: Document) -> str:
    """What a threat model says of it: first, because somebody waits for it."""
    wanting = [each for each in gate["checks"] if each["outcome"] == "failed"]
    kind, word = ("passed", "Passed") if gate["passed"] else ("failed", "Failed")
    open_ = sum(each["outcome"] == "skipped" for each in gate["checks"])
    told = f"{len(gate['checks'])} claims: {len(wanting)} not met, {open_} that so few scans cannot show."
    return (
        f'<div class="verdict {kind}"><h2>Threat model <q>{escape(gate["name"])}</q>: <b>{word}</b></h2>'
        f"<p>{told}</p>{tables.checks(gate['checks'])}</div>"
    )


def _cards(document: Document, attacks: Sequence[Document]) -> str:
    """The figures to remember."""
    fpr, limit = document["fpr_measured"], document["target_fpr"]
    cards = [
        (share(document["clean_accuracy"]), "of clean test scans read rightly", False),
        (
            share(fpr["rate"]),
            f"of clean scans flagged; promised {share(limit)}, interval {share(fpr['low'])} to {share(fpr['high'])}",
            fpr["low"] > limit,
        ),
    ]
    for tier, words in (
        ("oblivious", "who does not know the detectors"),
        ("black-box", "who can only ask the model"),
        ("transfer", "with a model of his own"),
        ("adaptive", "who holds the detectors"),
    ):
        found = worst(attacks, tier)
        if found is not None:
            told = f"worst evasion by an attacker {words}: {called(found)}"
            cards.append((share(found["evasion"]), told, found["evasion"] > 0.1))
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card{" warn" if warn else ""}"><b>{figure}</b><span>{escape(words)}</span></div>'
            for figure, words, warn in cards
        )
        + "</div>"
    )


def _honest(document: Document, attacks: Sequence[Document]) -> str:
    """What an informed attacker achieves, in words."""
    found = worst(attacks, "adaptive")
    if found is None:
        told = (
            "No attacker who knows the detectors was tried. Nothing here says what he would achieve; expect much more "
            "than what is shown."
        )
    else:
        risk, walked = found["adversarial_risk"], found["convergence"]
        rising = walked is not None and not walked["flat"]
        told = (
            f"An attacker who holds model, detectors and threshold gets {found['evasion']:.0%} "
            f"[{risk['low']:.0%}, {risk['high']:.0%}] of {found['n_attacked']} scans misread and admitted at "
            f"{found['eps']:g} grey levels. It is the best that one attack found, so a lower bound"
            + (", and its curve was still rising: the true figure is larger. " if rising else ". ")
            + "Detectors raise the price; what a signature covers cannot be changed at all."
        )
    if len(document["seeds"]) == 1:
        told += " One seed: another one may move each figure within its interval, or a little beyond."
    return f'<p class="honest">{escape(told)}</p>'
