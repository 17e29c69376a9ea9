"""How a report names attacks and spells rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]


def called(entry: Document) -> str:
    """An entry of report.json by its name and budget."""
    return str(entry["name"]) if entry["eps"] is None else f"{entry['name']}, {budget(entry)}"


def budget(entry: Document) -> str:
    """The budget of an entry."""
    return "no budget" if entry["eps"] is None else levels(entry["eps"])


def levels(count: float) -> str:
    """So many grey levels."""
    return f"{count:g} level" if count == 1 else f"{count:g} levels"


def share(rate: float) -> str:
    """A share in per cent."""
    return f"{rate:.1%}"


def interval(rate: Mapping[str, float] | None) -> str:
    """A rate with its interval, in per cent, or a dash."""
    return "-" if rate is None else f"{share(rate['rate'])} [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"


def worst(attacks: Sequence[Document], tier: str) -> Document | None:
    """The entry of a tier with the most evasion; among equals, the smallest budget."""
    found = [each for each in attacks if each["tier"] == tier]
    return max(found, key=lambda each: (each["evasion"], -(each["eps"] or 0)), default=None)
