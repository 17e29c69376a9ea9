"""The chapters of the page: what is drawn, and the sentence that says how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from lab.evaluation import tables
from lab.evaluation.charts import SMALL, Look, Point, Scale, Series, bars, budgets, legend, lines
from lab.evaluation.words import budget, called, share

Document = Mapping[str, Any]
_TENTHS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_DECADES = (0.001, 0.01, 0.1, 1.0)


def worst_case(document: Document) -> str:
    """Scans lost to any attack, over budgets."""
    rows = document["worst_case"]
    if not rows:
        return ""
    series = [
        Series(name, [_point(row[key], row["eps"]) for row in rows if row[key]], look)
        for key, name, look in (
            ("any", "any attack", Look("k1", 0, "square", bold=True)),
            ("uninformed", "detectors unknown", Look("k0", 1, "circle")),
        )
    ]
    return (
        "<h2>The worst case of each scan</h2><p>A scan is lost if one attack, at this budget or a smaller one, gets it "
        "misread and admitted: whoever has a budget may try them all. Whiskers are 95&nbsp;% intervals.</p>"
        + lines(series, budgets([row["eps"] for row in rows]), "scans lost")
        + tables.worst_case(rows)
    )


def getting_through(attacks: Sequence[Document]) -> str:
    """Evasion over budgets, a line for each attack."""
    series = [
        Series(name, [_point(entry["adversarial_risk"], entry["eps"]) for entry in entries], look)
        for (name, entries), look in zip(_sized(attacks).items(), _looks(attacks).values(), strict=True)
    ]
    if not series:
        return ""
    told = "<p>Misread <em>and</em> not flagged, of all attacked scans.</p>"
    chart = lines(series, budgets([each["eps"] for each in attacks if each["eps"] is not None]), "misread and admitted")
    return f"<h2>What gets through</h2>{told}{chart}"


def convergence(attacks: Sequence[Document]) -> str:
    """Evasion of the informed attacker over his steps; a curve that rises to the end says too little."""
    walked = [each for each in attacks if each["convergence"] is not None]
    if not walked:
        return ""
    longest = max(sum(len(start) for start in each["convergence"]["starts"]) for each in walked)
    starts = max((each["convergence"]["starts"] for each in walked), key=len)
    rules = [sum(len(start) for start in starts[: k + 1]) - 0.5 for k in range(len(starts) - 1)]
    series, several = [], len({each["name"] for each in walked}) > 1
    for index, each in enumerate(walked):
        whole = [value for start in each["convergence"]["starts"] for value in start]
        whole += [whole[-1]] * (longest - len(whole))
        series.append(
            Series(called(each) if several else budget(each), list(enumerate(whole)), Look.shade(index, len(walked)))
        )
    step = max(1, longest // 5)
    across = Scale(0, max(1, longest - 1), range(0, longest, step), f"steps, {len(starts)} starts one after another")
    rising = [each for each in walked if not each["convergence"]["flat"]]
    if rising:
        which = ", ".join(f"{budget(each)} (+{share(each['convergence']['late_rise'])})" for each in rising)
        told = f"Still rising over the last quarter of the steps at {which}: more steps would find more."
    else:
        told = "Flat over the last quarter of the steps at every budget: more of the same steps would find little more."
    return (
        "<h2>Is the informed attacker done?</h2>"
        f"<p><b>{escape(told)}</b> Flat means a rise of at most one scan or 1&nbsp;%. Dotted: the next start; scans "
        "that have fallen are not attacked again.</p>" + lines(series, across, "misread and admitted", rules=rules)
    )


def caught(document: Document) -> str:
    """Detection over budgets, a small chart for each detector."""
    attacks = document["attacks"]
    sized, looks = _sized(attacks), _looks(attacks)
    if not sized:
        return ""
    across = budgets([each["eps"] for each in attacks if each["eps"] is not None])
    weights = document["detectors"]
    panels = []
    for name in ("ensemble", *sorted(weights, key=lambda name: (-weights[name], name))):
        series = [Series(attack, _found(entries, name), looks[attack]) for attack, entries in sized.items()]
        said = "" if name == "ensemble" else f", weight {weights[name]:.0%}" if weights[name] else ", reported only"
        panels.append(_figure(f"<b>{escape(name)}</b>{said}", lines(series, across, f"flagged by {name}", SMALL)))
    return (
        "<h2>What each detector catches</h2><p>Of the attacks that succeed, the share flagged at "
        f"p&nbsp;&le;&nbsp;{document['target_fpr']:g}, by budget. Only detectors with a weight decide.</p>"
        f'{legend(looks)}<div class="row">{"".join(panels)}</div>'
    )


def harmless(document: Document) -> str:
    """What is flagged though harmless, and what denoisers cost."""
    told = {"clean": document["fpr_measured"], **document["null_attack"]["by_change"], **document["shift"]}
    rates = {name: _point(rate, 0.0) for name, rate in told.items()}
    return (
        "<h2>What is flagged though harmless</h2><p>The null attack: clean scans, saved again, compressed, blurred, "
        "brightened, or with noise as large as an attack; and scans of other sources. A detector that flags these "
        "reads how a file was made, not whether it was attacked. Shaded: more than twice what was promised.</p>"
        + bars(rates, document["target_fpr"], "flagged though harmless")
        + tables.calm(document)
        + "<h3>Reading clean scans</h3>"
        + tables.accuracy(document)
    )


def each_attack(document: Document) -> str:
    """One section for each attack: curves of the ensemble at each budget, and a table of all detectors."""
    fprs = document["roc_fpr"]
    least = next((fpr for fpr in fprs if fpr > 0), 1.0)
    plain = Scale(0, 1, _TENTHS, "clean scans flagged", said=lambda rate: f"{100 * rate:g} %")
    fine = Scale(
        least, 1, [least, *(each for each in _DECADES if each > 1.5 * least)], "clean scans flagged", logarithmic=True,
        said=lambda rate: f"{round(100 * rate, 1):g} %",
    )  # fmt: skip
    parts = [
        "<h2>Attack by attack</h2><p>The ensemble at every threshold: the share of successful attacks that it flags "
        "over the share of clean scans that it would flag (ROC), the same where few clean scans are, and the share of "
        "all attacked scans that is misread and admitted. The tables say what each detector sees at the rules "
        "p&nbsp;&le;&nbsp;1&nbsp;% and 5&nbsp;%, in per cent of the attacks that succeed; shaded: missed.</p>"
    ]
    for name, entries in _by_name(document["attacks"]).items():
        seen = [each for each in entries if each["ensemble"] is not None]
        looks = {budget(each): Look.shade(k, len(entries)) for k, each in enumerate(entries)}
        rocs = [
            Series(budget(each), list(zip(fprs, each["ensemble"]["roc"], strict=True)), looks[budget(each)])
            for each in seen
        ]
        risks = [
            Series(budget(each), list(zip(fprs, each["risk_coverage"]["risk"], strict=True)), looks[budget(each)])
            for each in entries
        ]
        figures = [
            _figure("<b>ROC</b>", lines(rocs, plain, "flagged", SMALL)),
            _figure("<b>ROC</b>, few clean scans flagged", lines(_some(rocs), fine, "flagged", SMALL)),
            _figure("<b>Misread and admitted</b>", lines(_some(risks), fine, "misread and admitted", SMALL)),
        ]
        shown = f'{legend(looks)}<div class="row">{"".join(figures)}</div>'
        parts.append(f"<section><h3>{escape(name)}</h3>{shown}{tables.detection(document, entries)}</section>")
    return "".join(parts)


def _some(series: Sequence[Series]) -> list[Series]:
    """Without the threshold that flags no clean scan, which a logarithmic axis has no place for."""
    return [Series(each.name, each.points[1:], each.look) for each in series]


def _figure(caption: str, chart: str) -> str:
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>" if chart else ""


def _found(entries: Sequence[Document], name: str) -> list[Point]:
    """Detection by one detector at the target rate, at each budget where there was something to detect."""
    worths = [(each["eps"], each["ensemble"] if name == "ensemble" else each["detectors"][name]) for each in entries]
    return [_point(worth["at_target"], eps) for eps, worth in worths if worth is not None]


def _by_name(attacks: Sequence[Document]) -> dict[str, list[Document]]:
    """Entries of each attack by budget, the informed attacker first."""
    named: dict[str, list[Document]] = {}
    for entry in sorted(attacks, key=lambda each: each["eps"] or 0.0):
        named.setdefault(entry["name"], []).append(entry)
    places = {name: index for index, name in reversed(list(enumerate(each["name"] for each in attacks)))}
    return dict(sorted(named.items(), key=lambda item: (item[1][0]["tier"] != "adaptive", places[item[0]])))


def _sized(attacks: Sequence[Document]) -> dict[str, list[Document]]:
    """Those of them that have budgets."""
    return _by_name([each for each in attacks if each["eps"] is not None])


def _looks(attacks: Sequence[Document]) -> dict[str, Look]:
    """One look for each attack that has budgets; the informed attacker's stand out."""
    sized = _sized(attacks)
    others = [name for name, entries in sized.items() if entries[0]["tier"] != "adaptive"]
    informed = [name for name in sized if name not in others]
    looks = {
        name: Look("k1", k, ("square", "diamond", "triangle")[k % 3], bold=True) for k, name in enumerate(informed)
    }
    free = [index for index in range(2 * len(others) + 2) if index % 8 != 1]
    return looks | {name: Look.nth(index) for name, index in zip(others, free, strict=False)}


def _point(rate: Mapping[str, float], x: float) -> Point:
    return Point(x, rate["rate"], rate["low"], rate["high"])
