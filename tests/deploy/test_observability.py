"""Alerts and dashboard: valid, tested, documented, and every query finds data where a gateway really ran."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "scanward.rules.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "scanward.json"

INSTEAD = {"$__rate_interval": "2m", "$instance": ".*"}
"""What Grafana puts in the place of its variables."""


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}


def queries() -> Iterator[tuple[str, str]]:
    """Title and query of every target of every panel."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for variable, value in INSTEAD.items():
                expression = expression.replace(variable, value)
            yield panel["title"], expression


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("needs prometheus")
    return subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "--syntax-only", "prometheus.yml"),  # the certificates that it names are the site's
        ("check", "rules", "scanward.rules.yml"),
        ("test", "rules", "scanward.rules.test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...]) -> None:
    done = promtool(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested_where_it_fires_and_where_it_must_not() -> None:
    fired: dict[bool, set[str]] = {True: set(), False: set()}
    for case in yaml.safe_load((FOLDER / "scanward.rules.test.yml").read_text())["tests"]:
        for check in case["alert_rule_test"]:
            fired[bool(check.get("exp_alerts"))].add(check["alertname"])
    assert fired == {True: set(alerts()), False: set(alerts())}


def test_every_alert_has_its_place_in_the_runbook() -> None:
    headings = set(re.findall(r"^### (Scanward\w+)$", (ROOT / "docs" / "deploy.md").read_text(), re.MULTILINE))
    assert headings == set(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"] == f"docs/deploy.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"page", "ticket"}


def test_rules_and_dashboard_ask_only_for_metrics_that_there_are() -> None:
    names = set()
    for family in Metrics().registry.collect():
        suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}.get(family.type, ("",))
        names |= {family.name + suffix for suffix in suffixes}
    asked = [rule["expr"] for rule in alerts().values()] + [expression for _, expression in queries()]

    assert {name for expression in asked for name in re.findall(r"scanward_\w+", expression)} - names == set()


def test_what_it_serves_is_in_prometheus_own_style(prometheus) -> None:
    """`promtool check metrics` reads what was scraped, and says nothing where there is nothing to say."""
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=prometheus.figures(), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_panel_shows_data_of_a_gateway_that_ran(prometheus) -> None:
    """All in one test, at one time: what a rate looks back on passes."""
    without = [
        (title, expression)
        for title, expression in queries()
        if not any(math.isfinite(float(series["value"][1])) for series in prometheus.query(expression))
    ]
    assert without == []


def test_prometheus_could_evaluate_every_rule(prometheus) -> None:
    rules = {rule["name"]: (rule["health"], rule.get("lastError", "")) for rule in prometheus.rules()}
    assert rules == dict.fromkeys(alerts(), ("ok", ""))


def test_a_run_with_attacks_raises_the_alerts_that_it_must(prometheus) -> None:
    """The demo has a stripped scan and admits unsigned ones by an unsafe setting."""
    firing = {rule["name"] for rule in prometheus.rules() if rule["state"] == "firing"}
    assert {"ScanwardStripped", "ScanwardUnsafeAdmissions"} <= firing
    assert not firing & {"ScanwardDown", "ScanwardNotReady", "ScanwardReplayed"}
