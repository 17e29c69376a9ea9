"""What entries of a report say together: the worst case of each scan, and whether an attack is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lab.evaluation.choices import LEVELS
from lab.statistics import clopper_pearson

LATE = 0.25
"""The last share of an attack's steps, over which its curve must be flat."""
RISE_MAX = 0.01
"""By how much a flat curve may rise there; one scan is always allowed."""

Document = Mapping[str, Any]


def worst_cases(attacks: Sequence[Document]) -> list[dict[str, Any]]:
    """For each budget, the scans that any attack of at most that budget gets misread and admitted.

    A scan is lost if one attack is enough: whoever has a budget may try them all, smaller budgets too. Attacks without
    a budget of grey levels for every value are not among them.

    Args:
        attacks: entries of report.json.

    Returns:
        By budget `eps`, `uninformed` without the attacker who holds the detectors, and `any` with him, each a rate with
        its interval or None where nobody was tried; `lost` are the places of the scans in the test split.
    """
    sized = [each for each in attacks if each["eps"] is not None and each["budget"] == LEVELS]
    rows = []
    for level in sorted({each["eps"] for each in sized}):
        within = [each for each in sized if each["eps"] <= level]
        blind = [each for each in within if each["tier"] != "adaptive"]
        informed = any(each["tier"] == "adaptive" and each["eps"] == level for each in within)
        rows.append({
            "eps": level,
            "uninformed": _lost(blind) if blind else None,
            "any": _lost(within) if informed else None,
            "lost": sorted(_places(within)),
        })  # fmt: skip
    return rows


def convergence(starts: Sequence[Sequence[int]], scans: int) -> dict[str, Any] | None:
    """Whether an attack had found what it can: its success over its steps, start after start.

    Args:
        starts: for each start, how many scans had fallen after so many steps, those of earlier starts among them.
        scans: how many were attacked.

    Returns:
        `starts` as shares, `late_rise` over the last quarter of all steps, and whether that is `flat`; None where the
        attack does not tell.
    """
    if not starts:
        return None
    walked = [count for start in starts for count in start]
    rise = walked[-1] - walked[int((1 - LATE) * (len(walked) - 1))]
    return {
        "starts": [[round(count / scans, 4) for count in start] for start in starts],
        "late_rise": rise / scans,
        "flat": rise <= max(1.0, RISE_MAX * scans),
    }


def _places(entries: Sequence[Document]) -> set[int]:
    return {place for each in entries for place in each["evaded"]}


def _lost(entries: Sequence[Document]) -> dict[str, float]:
    return clopper_pearson(len(_places(entries)), entries[0]["n_attacked"])
