"""What the page of a report says, and that it needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from lxml import etree

from lab.evaluation.charts import Look
from lab.evaluation.choices import LEVELS
from lab.evaluation.conclusions import convergence, worst_cases
from lab.evaluation.page import page


def test_every_chapter_is_there_and_every_chart_is_well_formed(drawn: Mapping[str, Any]) -> None:
    shown = page(drawn, "chest")

    for heading in (
        "The worst case of each scan", "What gets through", "Is the informed attacker done?",
        "What each detector catches", "What is flagged though harmless", "Reading clean scans", "Every attack",
        "Attack by attack", "Threat model",
    ):  # fmt: skip
        assert f">{heading}</h" in shown
    charts = re.findall(r"<svg .*?</svg>", shown, re.DOTALL)
    assert len(charts) > 3 + 5 + 3 * 6
    for chart in charts:
        assert etree.fromstring(chart).get("viewBox")
        assert not re.search(r"\bnan\b|\binf\b", chart)
    for detector in drawn["detectors"]:
        assert f"<b>{detector}</b>" in shown
        assert f"<td>{detector}" in shown


def test_the_page_may_load_and_run_nothing(drawn: Mapping[str, Any]) -> None:
    shown = page(drawn, "chest")

    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', shown)
    (style,) = re.findall(r"<style>(.*?)</style>", shown, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert "default-src &#x27;none&#x27;" in policy
    assert f"style-src &#x27;sha256-{digest}&#x27;" in policy
    assert not re.search(r"<script|\son\w+=|\sstyle=|\ssrc=|\shref=|@import|url\(", shown)


def test_colours_are_never_all_that_tells_lines_apart(drawn: Mapping[str, Any]) -> None:
    looks = re.findall(r'<li><svg[^>]*><g class="(k\d) (d\d)[^"]*">(.*?)</g>', page(drawn, "chest"))

    attacks = {hue: (dash, marks) for hue, dash, marks in looks}
    assert len(attacks) == len(set(attacks.values())) == 5
    assert len({(look.dash, look.mark) for look in map(Look.nth, range(16))}) == 16


def test_whether_the_informed_attacker_is_done_is_said_in_a_sentence(drawn: Mapping[str, Any]) -> None:
    rising = [
        each | {"convergence": each["convergence"] | {"late_rise": 0.1, "flat": False}}
        if each["name"] == "adaptive" and each["eps"] == 4 else each
        for each in drawn["attacks"]
    ]  # fmt: skip

    assert "Flat over the last quarter of the steps at every budget" in page(drawn, "chest")
    assert "Still rising over the last quarter of the steps at 4 levels (+10.0%)" in page(
        {**drawn, "attacks": rising}, "chest"
    )


def test_a_curve_is_flat_when_its_last_quarter_hardly_rises() -> None:
    flat, rising = [0, 10, 20, 30, 30, 30, 30, 31], [0, 10, 20, 30, 30, 30, 30, 32]

    assert convergence([flat], 100) == {"starts": [[c / 100 for c in flat]], "late_rise": 0.01, "flat": True}
    assert convergence([rising[:4], rising[4:]], 100) == {
        "starts": [[0.0, 0.1, 0.2, 0.3], [0.3, 0.3, 0.3, 0.32]], "late_rise": 0.02, "flat": False,
    }  # fmt: skip
    assert convergence([], 100) is None


def test_a_scan_is_lost_if_one_attack_of_at_most_the_budget_is_enough() -> None:
    def entry(name: str, tier: str, eps: float | None, *evaded: int) -> dict[str, Any]:
        return {"name": name, "tier": tier, "eps": eps, "budget": LEVELS, "n_attacked": 10, "evaded": list(evaded)}

    rows = worst_cases([
        entry("pgd", "oblivious", 2.0, 1), entry("square", "oblivious", 2.0, 1, 2), entry("pgd", "oblivious", 4.0, 3),
        entry("adaptive", "adaptive", 4.0, 3, 4, 5), entry("cw", "oblivious", None, 9),
    ])  # fmt: skip

    assert [row["eps"] for row in rows] == [2.0, 4.0]
    assert [row["lost"] for row in rows] == [[1, 2], [1, 2, 3, 4, 5]]
    assert [row["uninformed"]["rate"] for row in rows] == [0.2, 0.3]
    assert rows[0]["any"] is None
    assert rows[1]["any"]["rate"] == 0.5
