"""Which of the calibrated categories a scan may be of: what nobody vouches for, its sender could have chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from detectors.mondrian import Category, Taxonomy
from gateway.case import Case
from gateway.finding import Outcome
from gateway.policy import SIGNATURE
from gateway.scan import ANONYMOUS
from signing import DicomError

HEADER_TAGS = {"modality": 0x00080060, "manufacturer": 0x00080070}
"""By attribute: Modality and Manufacturer."""


def claimable(case: Case, taxonomy: Taxonomy) -> tuple[Category, ...]:
    """The categories that a scan may be of; empty where its kind was not calibrated.

    A header counts as far as a verified signature covers it, and a source as far as it has shown who it is. Everything
    else is left open: whatever the header says there makes no difference, so no header can be written to one's own
    advantage.
    """
    return taxonomy.claimable({name: value for name, value in _known(case).items() if value is not None})


def normal(value: str) -> str:
    """A header value as categories are named by it: scanners differ in case and spaces from one release to the next."""
    return " ".join(value.split()).upper()


def _known(case: Case) -> Mapping[str, str | None]:
    source = case.scan.source
    signed = any(each.stage == SIGNATURE and each.outcome is Outcome.PASSED for each in case.findings)
    view = case.view
    header: Mapping[str, str | None] = {}
    if signed and view is not None:
        header = {name: _read(view.text, tag) for name, tag in HEADER_TAGS.items() if tag in view}
    return {**header, "source": source.name if source.proven and source.name != ANONYMOUS else None}


def _read(text: Callable[[int], str | None], tag: int) -> str:
    """A signed value; one that cannot be read is of no category, for it is signed that it cannot."""
    try:
        return normal(text(tag) or "")
    except DicomError:
        return ""
