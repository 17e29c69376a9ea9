"""The outcome of a gate as JUnit XML, which Jenkins, GitLab and GitHub's actions read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

_UNSPEAKABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 has no place for, section 2.2."""


def junit(gate: Mapping[str, Any], facts: Mapping[str, str]) -> str:
    """Write one test suite for each group of claims, one test case for each claim.

    Args:
        gate: as `lab.evaluation.gate.judge` gives it.
        facts: what was judged, as properties of each suite.
    """
    checks = gate["checks"]
    whole = ET.Element("testsuites", _counts(gate["name"], checks))
    for group in dict.fromkeys(each["group"] for each in checks):
        own = [each for each in checks if each["group"] == group]
        suite = ET.SubElement(whole, "testsuite", _counts(group, own))
        properties = ET.SubElement(suite, "properties")
        for name, value in facts.items():
            ET.SubElement(properties, "property", {"name": name, "value": _speakable(value)})
        for each in own:
            _case(suite, each, gate["name"])
    ET.indent(whole)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(whole, encoding="unicode") + "\n"


def _case(suite: ET.Element, check: Mapping[str, str], threat: str) -> None:
    named = {"name": _speakable(check["name"]), "classname": _speakable(f"{threat}.{check['group']}"), "time": "0"}
    case = ET.SubElement(suite, "testcase", named)
    says = _speakable(check["says"])
    if check["outcome"] == "failed":
        ET.SubElement(case, "failure", {"message": says, "type": "claim not met"}).text = says
    elif check["outcome"] == "skipped":
        ET.SubElement(case, "skipped", {"message": says})
    else:
        ET.SubElement(case, "system-out").text = says


def _counts(name: str, checks: list[Mapping[str, str]]) -> dict[str, str]:
    outcomes = [each["outcome"] for each in checks]
    return {
        "name": _speakable(name),
        "tests": str(len(checks)),
        "failures": str(outcomes.count("failed")),
        "errors": "0",
        "skipped": str(outcomes.count("skipped")),
        "time": "0",
    }


def _speakable(words: str) -> str:
    return _UNSPEAKABLE.sub("?", words)
