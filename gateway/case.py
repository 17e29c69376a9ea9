"""A scan under examination: what was found so far, and what was made from it on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from gateway.finding import Finding
from gateway.scan import Scan
from signing import VerifiedView


@dataclass(frozen=True, slots=True)
class Image:
    """What the model would see: the pixels of the verified view, rendered as the model's profile says."""

    pixels: NDArray[np.float32]
    """(frames, channels, rows, columns), in the profile's `range`."""
    model: str
    """Name of the configured model whose profile rendered it."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the detection worker saw, as plain arrays."""

    statistic: float
    """The ensemble's fused statistic, of many frames the loudest one's, no unit; larger is more suspicious."""
    p_value: float
    """The ensemble's calibrated p-value, in (0, 1]."""
    scores: Mapping[str, float]
    p_values: Mapping[str, float]
    output: NDArray[np.float32]
    """(classes,): output of the reference model on the image."""
    denoised_outputs: Mapping[str, NDArray[np.float32]]
    """By denoiser: (classes,), its output on the denoised image; empty where nothing was denoised."""
    denoised: NDArray[np.float32] | None
    """(frames, channels, rows, columns): the image that goes on where the denoised one is admitted."""
    category: tuple[str, ...] | None = None
    """Of detectors that are calibrated by category: the one that it is of; None where it may be of several."""


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256 of everything that the answer depends on besides the scan; empty where the route has none."""

    model: str
    profile: str
    artefact: str
    policy: str
    trust: str


class Products(TypedDict, total=False):
    """What a stage may leave for later ones."""

    view: VerifiedView
    image: Image
    evidence: Evidence


@dataclass(frozen=True, slots=True)
class Case:
    """One examination; grows only through `with_finding`, and each product is set once."""

    scan: Scan
    received_at: datetime
    """Aware, UTC: the time that validity of certificates is judged at."""
    digests: Digests
    findings: tuple[Finding, ...] = ()
    study_held: int = 0
    """Earlier instances of the same study, sent as a whole, that were held or refused; 0 for a scan sent alone."""
    view: VerifiedView | None = None
    image: Image | None = None
    evidence: Evidence | None = None

    def with_finding(self, finding: Finding, **products: Unpack[Products]) -> Case:
        """The case with one finding more; raises ValueError where a product is already there."""
        for name in products:
            if getattr(self, name) is not None:
                raise ValueError(f"{name} is already set")
        return replace(self, findings=(*self.findings, finding), **products)

    def has(self, product: str) -> bool:
        """Whether an earlier stage left `product` (a key of `Products`)."""
        return getattr(self, product) is not None
