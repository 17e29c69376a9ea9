"""[review]: what people may do with held scans, and how long what they decided about is kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gateway.settings.fields import Name, Table

Days = Annotated[float, Field(gt=0.0, le=36_500.0)]


class PersonConfig(Table):
    """One person, and every identity under which that person may review."""

    name: Name
    identities: Annotated[tuple[str, ...], Field(min_length=1)]
    """Names of sources, and `PROVIDER/SUBJECT` of identity providers' tokens."""


class ReviewConfig(Table):
    """Without this table nothing is released and nothing expires."""

    four_eyes: bool
    """Two different people must agree before a scan is released."""
    persons: tuple[PersonConfig, ...] = ()
    """Who is who; needed for four eyes where reviewers have several kinds of credentials."""
    decided_days_max: Days
    """What was released or confirmed leaves the quarantine so long after the decision; its records stay."""
    unsafe_undecided_days_max: Days | None = None
    """So long after it was held a scan is given up although nobody decided about it; without it, never."""
    unsafe_release_failed_signatures: bool = False
    """Whether a scan may be released whose signature was examined and did not hold."""
