"""Judges a report by a threat model: each claim on the end of its interval that is fair to who relies on it.

What protects must be shown: evasion and worst case are judged on the upper end of their 95 % interval, detection on the
lower. What the calibration has promised already, or what costs and does not endanger, must not be refuted: false
positives, harmless changes and clean accuracy fail only where the whole interval is on the wrong side.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lab.evaluation.choices import CHOICES
from lab.evaluation.threat import AttackClaim, ThreatModel
from lab.evaluation.words import called, interval, levels, share
from lab.statistics import clopper_pearson

Document = Mapping[str, Any]
Outcome = Literal["passed", "failed", "skipped"]
OUTSIDE = 0.025
"""Beyond either end of an interval."""


@dataclass(frozen=True, slots=True)
class Check:
    """One claim and what became of it."""

    group: str
    """`clean`, a tier, or `worst case`."""
    name: str
    outcome: Outcome
    says: str
    """What was measured, and by which end it was judged."""


def judge(document: Document, threat: ThreatModel) -> dict[str, Any]:
    """Judge a finished report.

    Args:
        document: report.json.
        threat: what was declared.

    Returns:
        `name`, `passed`, and `checks`, as report.json holds them under `gate`. A claim about an attack that was not
        tried is not met.
    """
    checks = [*_clean(document, threat), *_attacks(document, threat), *_worst(document, threat)]
    passed = all(each.outcome != "failed" for each in checks)
    return {"name": threat.name, "passed": passed, "checks": [asdict(each) for each in checks]}


def markdown(gate: Document) -> str:
    """The outcome as a table, what is not met first."""
    order = {"failed": 0, "skipped": 1, "passed": 2}
    checks = sorted(gate["checks"], key=lambda each: order[each["outcome"]])
    rows = [f"| {each['name']} | {each['outcome']} | {each['says']} |" for each in checks]
    word = "passed" if gate["passed"] else "failed"
    return "\n".join([f"Threat model {gate['name']!r}: {word}.", "", "| claim | | measured |", "|---|---|---|", *rows])


def _clean(document: Document, threat: ThreatModel) -> Iterator[Check]:
    claim, fpr = threat.clean, document["fpr_measured"]
    yield _not_above("clean", "false positives", fpr, claim.false_positive_rate_max)
    read, n = document["clean_accuracy"], document["n_clean"]
    # A mean Dice coefficient or share of labels varies less than a coin of the same mean: its interval is no longer.
    rate = clopper_pearson(round(read * n), n)
    fine = rate["high"] >= claim.accuracy_min
    told = f"{interval(rate)} of {n} scans; the upper end must reach {share(claim.accuracy_min)}"
    yield Check("clean", "clean accuracy", "passed" if fine else "failed", told)
    if claim.harmless_max is not None:
        for name, each in document["null_attack"]["by_change"].items():
            yield _not_above("clean", f"harmless: {name}", each, claim.harmless_max)


def _attacks(document: Document, threat: ThreatModel) -> Iterator[Check]:
    for claim in threat.attack:
        for name, eps in _tried(claim):
            entry = _entry(document["attacks"], claim.tier, name, eps)
            if entry is None:
                what = name if eps is None else f"{name}, {levels(eps)}"
                yield Check(claim.tier, what, "failed", "was not tried")
                continue
            if claim.evasion_max is not None:
                rate, what = entry["adversarial_risk"], f"{called(entry)}: evasion"
                yield _shown_below(claim.tier, what, rate, claim.evasion_max)
            if claim.tpr_min is not None:
                yield _detected(claim.tier, entry, claim.tpr_min)
            if claim.converged:
                yield _converged(claim.tier, entry)


def _worst(document: Document, threat: ThreatModel) -> Iterator[Check]:
    rows = {row["eps"]: row["any"] or row["uninformed"] for row in document["worst_case"]}
    for claim in threat.worst_case:
        what = f"worst case, {levels(claim.budget)}: lost"
        if rows.get(claim.budget) is None:
            yield Check("worst case", what, "failed", "was not tried")
        else:
            yield _shown_below("worst case", what, rows[claim.budget], claim.lost_max)


def _tried(claim: AttackClaim) -> Iterator[tuple[str, float | None]]:
    """What a claim is about: attacks and their budgets; None where they have none."""
    for name in claim.names or (claim.tier,):
        for budget in claim.budgets if name not in CHOICES or CHOICES[name].sized else (None,):
            yield name, budget


def _entry(attacks: Sequence[Document], tier: str, name: str, eps: float | None) -> Document | None:
    return next((e for e in attacks if (e["tier"], e["name"], e["eps"]) == (tier, name, eps)), None)


def _not_above(group: str, what: str, rate: Mapping[str, float], limit: float) -> Check:
    """Fails only where the whole interval is above the limit."""
    told = f"{interval(rate)} of {rate['n']} scans; the lower end must not be above {share(limit)}"
    return Check(group, what, "passed" if rate["low"] <= limit else "failed", told)


def _shown_below(group: str, what: str, rate: Mapping[str, float], limit: float) -> Check:
    """Passes only where the whole interval is below the limit."""
    told = f"{interval(rate)} of {rate['n']} scans; the upper end must not be above {share(limit)}"
    n = rate["n"]
    if rate["high"] > limit and clopper_pearson(0, int(n))["high"] > limit:
        told += f"; {n} scans could not show that even with none lost" + _needed(1 - limit, ", {} could")
    return Check(group, what, "passed" if rate["high"] <= limit else "failed", told)


def _detected(group: str, entry: Document, least: float) -> Check:
    """Passes only where the whole interval is above; says nothing where so few successes could not show it."""
    what, found = f"{called(entry)}: detection", entry["ensemble"]
    if found is None:
        return Check(group, what, "skipped", "it succeeded nowhere: there was nothing to detect")
    rate = found["at_target"]
    told = f"{interval(rate)} of {rate['n']} successes; the lower end must reach {share(least)}"
    if rate["low"] >= least:
        return Check(group, what, "passed", told)
    if clopper_pearson(int(rate["n"]), int(rate["n"]))["low"] < least and rate["high"] >= least:
        told += f"; {rate['n']} could not show that even if all were flagged" + _needed(least, ", {} could")
        return Check(group, what, "skipped", told)
    return Check(group, what, "failed", told)


def _converged(group: str, entry: Document) -> Check:
    """The attacker must have found what he can."""
    what, walked = f"{called(entry)}: curve", entry["convergence"]
    if walked is None:
        return Check(group, what, "skipped", "no scan was left to attack")
    told = f"rose by {share(walked['late_rise'])} over the last quarter of its steps; one scan or 1 % is flat"
    return Check(group, what, "passed" if walked["flat"] else "failed", told)


def _needed(least: float, words: str) -> str:
    """How many scans show a rate of at least so much if all are well; nothing where no number does."""
    if not 0 < least < 1:
        return ""
    return words.format(math.ceil(math.log(OUTSIDE) / math.log(least)))
