"""The p-values of a study's slices taken together: is any slice not clean, at a stated false discovery rate?

Benjamini and Hochberg 1995 (doi:10.1111/j.2517-6161.1995.tb02031.x), whose smallest adjusted p-value is that of Simes
1986 for "every slice is clean". Both hold for independent p-values and for positively dependent ones (Benjamini and
Yekutieli 2001), as those of neighbouring slices are, and as conformal ones that share a calibration set are (Bates et
al. 2023, arXiv:2104.08279). docs/adr says why not the form for any dependence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Fused:
    """The slices of one study, together."""

    p_value: float
    """Of "every slice is clean", in (0, 1]: at most q in a share of at most q of clean studies, of whatever size, as
    far as the p-values of slices hold (`detectors.calibration.ConformalCalibration`)."""
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
