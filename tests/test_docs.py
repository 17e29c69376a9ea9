"""The documents keep their word: links lead somewhere, and what they list is what there is."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from gateway.telemetry.metrics import Metrics
from signing import TrustPolicy

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    missing = [link for link in LINK.findall(document.read_text()) if not (document.parent / link).exists()]

    assert missing == []


def test_the_metrics_page_lists_every_metric() -> None:
    """Names and labels are API, so the page may neither forget one nor invent one."""
    listed = set(re.findall(r"^\| `(scanward_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    families = [family for family in Metrics().registry.collect() if family.name.startswith("scanward_")]

    assert listed == {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def test_every_decision_is_in_the_list() -> None:
    folder = ROOT / "docs" / "adr"
    listed = set(re.findall(r"\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text()))

    assert listed == {path.name for path in folder.glob("[0-9]*.md")}


def test_the_readme_opens_with_the_two_commands() -> None:
    """A first-time reader looks for how to see it and how to check it."""
    opening = (ROOT / "README.md").read_text().split("## ", 1)[0]

    assert ("make demo" in opening, "make test" in opening) == (True, True)


def test_sections_that_code_cites_exist() -> None:
    """`architecture 5.6` in a docstring is a promise that there is something to read."""
    sections = set(re.findall(r"^#+ ([\d.]+?)\.? ", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE))
    cited = {
        number
        for room in ("detectors", "gateway", "lab", "signing", "tests")
        for path in (ROOT / room).rglob("*.py")
        for number in re.findall(r"architecture,?(?: section)? (\d(?:\.\d)?)", path.read_text())
    }

    assert cited - sections == set()


def test_the_trust_policy_page_shows_the_strict_values() -> None:
    """What is left out of a policy has the value that the page shows."""
    page = (ROOT / "docs" / "trust-policy.md").read_text()
    shown = tomllib.loads(page.split("```toml\n", 1)[1].split("```", 1)[0])
    scalars = {key: value for key, value in shown.items() if key not in {"allowed_signers", "bindings"}}

    assert TrustPolicy.from_mapping(scalars) == TrustPolicy()
    assert set(scalars) | {"allowed_signers", "bindings"} == {each.name for each in fields(TrustPolicy)}
    assert TrustPolicy.from_mapping(shown).allowed_signers is not None
