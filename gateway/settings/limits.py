"""[limits]: what one caller may use of what all share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from gateway.settings.fields import Table

_Rate = Annotated[float, Field(gt=0.0, le=1e12)]
_Share = Annotated[float, Field(gt=0.0, le=1.0)]


class LimitsConfig(Table):
    """One caller's limits; every key must be written, since what is left out would be a limit that nobody chose."""

    scans_per_s: _Rate
    scans_burst: Annotated[int, Field(ge=1)]
    """Scans that may come at once after a pause."""
    bytes_per_s: _Rate
    bytes_burst: Annotated[int, Field(ge=1)]
    """Bytes that may come at once; a larger object is taken, and paid for afterwards by waiting."""
    holds_per_hour: _Rate
    """Scans held in quarantine; whoever tunes an attack against the detectors causes many."""
    holds_burst: Annotated[int, Field(ge=1)]
    calls_share: _Share
    """Of the handler threads, that calls of one caller may occupy at the same time; one thread at least."""
    spool_share: _Share
    """Of storage.spool_bytes_max, that streams of one caller may occupy."""
