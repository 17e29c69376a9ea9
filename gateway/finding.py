"""What one stage observed about one scan; a finding observes, it never decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from signing import Reason


class Outcome(StrEnum):
    """The three outcomes of an examination (ETSI EN 319 102-1, 5.1.3)."""

    PASSED = "passed"
    FAILED = "failed"
    INDETERMINATE = "indeterminate"


class GatewayReason(StrEnum):
    """Why a stage of the gateway came to its outcome; `signing.Reason` holds those of the signature stage."""

    SUSPECT = "suspect"
    NOT_CALIBRATED = "not_calibrated"
    UNSUPPORTED_TRANSFER_SYNTAX = "unsupported_transfer_syntax"
    UNSUPPORTED_IMAGE = "unsupported_image"
    NO_PIXEL_DATA = "no_pixel_data"
    WRONG_SIZE = "wrong_size"
    NOT_FINITE = "not_finite"
    TIMEOUT = "timeout"
    WORKER_LOST = "worker_lost"
    DETECTOR_ERROR = "detector_error"
    NOT_RUN = "not_run"


UNEXAMINABLE = frozenset(
    {
        GatewayReason.UNSUPPORTED_TRANSFER_SYNTAX,
        GatewayReason.UNSUPPORTED_IMAGE,
        GatewayReason.NO_PIXEL_DATA,
        GatewayReason.WRONG_SIZE,
        GatewayReason.NOT_FINITE,
    }
)
"""Reasons that lie in the scan, not in the gateway: trying again will not help."""

_NO_P_VALUES: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Finding:
    """One stage's observation. In text for people this is a "security finding": radiologists own the bare word."""

    stage: str
    outcome: Outcome
    reason: Reason | GatewayReason
    detail: str = ""
    """A sentence for a person; tags, sizes and digests only, never a header value."""
    score: float | None = None
    """The stage's statistic where it has one; larger is more suspicious."""
    p_value: float | None = None
    """Share of clean scans of the calibrated source that look at least this suspicious, in (0, 1]; of one that is
    louder than all that were calibrated on, and of a series of many frames, an estimate."""
    p_values: Mapping[str, float] = field(default_factory=lambda: _NO_P_VALUES)
    """p-value of each detector by name: for reviewers, never for submitters."""
    seconds: float = 0.0
    """Wall time that the stage took; set by the pipeline."""
