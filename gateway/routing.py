"""Which route a scan takes whose sender named none: the first rule that its header and its sender meet.

The header is read as it came, before any signature: a rule chooses who examines, it never lets anything by. Whatever
a changed header may lead to is examined there, and bounded by the routes that the source may use at all.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.errors import ScanError
from gateway.scan import Scan
from gateway.settings.routes import RoutingConfig
from signing import DicomError

_MODALITY, _BODY_PART_EXAMINED = 0x00080060, 0x00180015


class Routing:
    """The configured rules, in their order."""

    def __init__(self, rules: Sequence[RoutingConfig]) -> None:
        self._rules = rules

    def route_of(self, scan: Scan) -> str:
        """The route of the first rule that holds; raises ScanError where none does."""
        if not self._rules:
            raise ScanError("name a route: this sender has several")
        modality, body_part = _text(scan, _MODALITY), _text(scan, _BODY_PART_EXAMINED)
        for rule in self._rules:
            if (
                _among(modality, rule.modality)
                and _among(body_part, rule.body_part)
                and _among(scan.source.calling_ae, rule.calling_ae)
            ):
                return rule.route
        raise ScanError("no routing rule takes this scan: name a route")


def _among(value: str | None, wanted: tuple[str, ...]) -> bool:
    return not wanted or value in wanted


def _text(scan: Scan, tag: int) -> str | None:
    if scan.elements is None:
        return None
    try:
        return scan.elements.text(tag)
    except DicomError:
        return None
