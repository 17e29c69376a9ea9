"""The demo's table: what is sent to which route, and what must become of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Preparation(StrEnum):
    """What was done to a scan before it was sent."""

    SIGNED = "signed"
    PIXEL_CHANGED = "signed, then one pixel changed"
    STRIPPED = "signed, then the signature removed"
    STRANGER = "signed by somebody whom the hospital does not know"
    UNSIGNED = "not signed"
    ATTACKED = "not signed, adversarial"
    ATTACKED_THEN_SIGNED = "adversarial, then signed by the scanner"
    GREY = "not signed, clean, but one of the odd few"
    CUT_SHORT = "cut in the middle"
    ARCHIVE_CT = "pydicom's CT_small, signed"
    ARCHIVE_MR = "pydicom's MR_small, signed"


@dataclass(frozen=True, slots=True)
class Row:
    """One scan and the answer that it must get."""

    name: str
    route: str
    source: str
    """Name of the configured source, whose token the client shows."""
    preparation: Preparation
    disposition: str
    reason: str
    """First reason of the reply; `ok` where there is none."""


ROWS = (
    Row("signed-clean", "ct-phantom", "ct-scanner", Preparation.SIGNED, "admit", "ok"),
    Row("signed-one-pixel-changed", "ct-phantom", "ct-scanner", Preparation.PIXEL_CHANGED, "reject", "mac_mismatch"),
    Row("stripped", "ct-phantom", "ct-scanner", Preparation.STRIPPED, "reject", "stripped"),
    Row("stranger", "ct-phantom", "ct-scanner", Preparation.STRANGER, "reject", "untrusted"),
    Row("unsigned-clean", "legacy", "old-modality", Preparation.UNSIGNED, "admit", "ok"),
    Row("unsigned-adversarial", "legacy", "old-modality", Preparation.ATTACKED, "quarantine", "suspect"),
    Row("signed-adversarial", "ct-phantom", "ct-scanner", Preparation.ATTACKED_THEN_SIGNED, "quarantine", "suspect"),
    Row("grey-zone", "legacy", "old-modality", Preparation.GREY, "admit_denoised", "suspect"),
    Row("malformed", "ct-phantom", "ct-scanner", Preparation.CUT_SHORT, "reject", "malformed"),
    Row("archive-ct", "archive", "archive-importer", Preparation.ARCHIVE_CT, "admit", "ok"),
    Row("archive-mr", "archive", "archive-importer", Preparation.ARCHIVE_MR, "admit", "ok"),
)
