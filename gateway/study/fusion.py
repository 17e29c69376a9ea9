"""The p-values of a study's slices taken together: is any slice not clean, at a stated false discovery rate?

Benjamini and Hochberg 1995 (doi:10.1111/j.2517-6161.1995.tb02031.x), whose smallest adjusted p-value is that of Simes
1986 for "every slice is clean". Both hold for independent p-values and for positively dependent ones (Benjamini and
Yekutieli 2001), as those of neighbouring slices are, and as conformal ones that share a calibration set are (Bates et
al. 2023, arXiv:2104.08279). docs/adr says why not the form for any dependence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gateway.finding import Finding

_SAME = 1e-6
"""Two computations of the same p-value differ by less than this share of it."""
_SMALLEST = 1e-300
"""Where the exponential of a huge statistic would be 0, which is no p-value."""


@dataclass(frozen=True, slots=True)
class Fused:
    """The slices of one study, together."""

    p_value: float
    """Of "every slice is clean", in (0, 1]: at most q in a share of at most q of clean studies, of whatever size."""
    adjusted: tuple[float, ...]
    """Of each slice, in order: those with at most q are suspect at the false discovery rate q."""


def fuse(p_values: Sequence[float]) -> Fused | None:
    """Take the p-values of slices together; None where there are none.

    Raises:
        ValueError: one is not in (0, 1].
    """
    if not p_values:
        return None
    raw = np.asarray(p_values, np.float64)
    if not ((raw > 0.0) & (raw <= 1.0)).all():
        raise ValueError("a p-value lies outside (0, 1]")
    order = np.argsort(raw, kind="stable")
    scaled = raw[order] * len(raw) / np.arange(1, len(raw) + 1)
    adjusted = np.empty_like(raw)
    adjusted[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    adjusted = np.maximum(adjusted, raw)  # a division may have rounded it below
    return Fused(float(adjusted.min()), tuple(adjusted.tolist()))


def slice_p_value(finding: Finding, p_value_min: float) -> float | None:
    """The p-value with which a slice goes into its study's, from its detection finding; None where it has none.

    A rank among n clean scans is never below about 1 / n, and no study of 500 slices could be called suspect for one
    of them. So a slice that is louder than every clean scan, whose p-value is `p_value_min`, goes in with the tail
    beyond: the statistic is minus the logarithm of a tail probability that was fitted on other clean scans
    (`detectors.ensemble.join`). Out there it orders and promises nothing; `lab.study` measures what it is worth.
    """
    p_value, statistic = finding.p_value, finding.score
    if p_value is None or not 0.0 < p_value <= 1.0:
        return None
    if p_value > p_value_min * (1.0 + _SAME) or statistic is None or not math.isfinite(statistic):
        return p_value
    return max(_SMALLEST, min(p_value, math.exp(-max(statistic, 0.0))))
