"""What was hashed of an object while it arrived, so that it need not be hashed again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from signing.dataset import Element

if TYPE_CHECKING:
    from hashlib import _Hash


class Prefix(NamedTuple):
    """A hash that stands after some elements."""

    covered: tuple[Element, ...]
    """What it was fed: these byte ranges, in this order."""
    digest: _Hash


@dataclass(frozen=True, slots=True)
class Hashed:
    """Hashes of the main data set, by MAC Algorithm and Data Elements Signed."""

    prefixes: Mapping[tuple[str, tuple[int, ...]], Prefix]

    def resume(
        self, mac: str, listed: tuple[int, ...], covered: tuple[Element, ...]
    ) -> tuple[_Hash, tuple[Element, ...]] | None:
        """A hash over the first of `covered`, and the rest; None unless exactly those byte ranges were hashed."""
        known = self.prefixes.get((mac, listed))
        if known is None or covered[: len(known.covered)] != known.covered:
            return None
        return known.digest.copy(), covered[len(known.covered) :]
