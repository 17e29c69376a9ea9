"""Notices when one source sends many scans that look like one that was held: the mark of an attack by questions.

Whoever tunes an attack without knowing the detectors sends one image in many small variations and watches which are
held (Chen et al. 2019, arXiv:1907.05587; Li et al. 2022, arXiv:2006.14042). An attacker who knows this counter spreads
the questions over sources or transforms each image (Feng et al. 2023, arXiv:2303.06280), so it raises an alarm and
decides nothing. docs/limits.md says how the numbers were chosen.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from gateway.case import Image

SIDE, BAND = 32, 16
"""Pixels a side of what is hashed, and frequencies of it that are kept in each direction."""
BITS = BAND * BAND - 1
DISTANCE_MAX = 16
"""Bits in which the hashes of two near-duplicates may differ: covers changes to 8 of 255 grey levels."""
ALARM_COUNT = 150
"""Different near-duplicates of one held scan that raise the alarm; again at each further so many."""
ANCHORS_MAX = 64
"""Held scans remembered for each source."""
SOURCES_MAX = 256

_FREQUENCIES = np.cos(np.pi / SIDE * np.outer(np.arange(BAND), np.arange(SIDE) + 0.5))  # (BAND, SIDE): DCT-II


@dataclass(frozen=True, slots=True)
class QueryAlarm:
    """Many scans of one source look like one that was held."""

    held_sha256: str
    """Of the scan that was held first."""
    count: int
    """Different images like it that came from the same source since."""


@dataclass(slots=True)
class _Anchor:
    scan_sha256: str
    hash: NDArray[np.uint8]
    seen: set[bytes] = field(default_factory=set)
    """Digests of images already counted: the same image again teaches nobody anything."""
    count: int = 0


class QueryWatch:
    """Remembers what was held from whom, within fixed bounds; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sources: OrderedDict[str, OrderedDict[str, _Anchor]] = OrderedDict()

    def saw(self, source: str, scan_sha256: str, image: Image, *, held: bool) -> QueryAlarm | None:
        """Note one examined scan of a source; returns an alarm where it is one near-duplicate too many."""
        with self._lock:
            if not held and source not in self._sources:
                return None
        grey = image.pixels.mean(axis=(0, 1), dtype=np.float64)  # (rows, columns)
        own, digest = perceptual_hash(grey), hashlib.sha256(grey.tobytes()).digest()
        with self._lock:
            anchors = self._sources.setdefault(source, OrderedDict())
            self._sources.move_to_end(source)
            if len(self._sources) > SOURCES_MAX:
                self._sources.popitem(last=False)
            anchor = _nearest(anchors, own)
            if anchor is None:
                if held:
                    anchors[scan_sha256] = _Anchor(scan_sha256, own, {digest})
                    if len(anchors) > ANCHORS_MAX:
                        anchors.popitem(last=False)
                return None
            anchors.move_to_end(anchor.scan_sha256)
            return _counted(anchor, digest)


def perceptual_hash(grey: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Which low frequencies of the image are stronger than most of them.

    Args:
        grey: (rows, columns), the image that the model would see, averaged over frames and channels.

    Returns:
        (32,) uint8: `BITS` bits, packed.
    """
    small = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(grey)[None], SIDE)[0].numpy()
    strengths = (_FREQUENCIES @ small @ _FREQUENCIES.T).ravel()[1:]  # without the mean grey

    assert strengths.shape == (BITS,)
    return np.packbits(strengths > np.median(strengths))


def _nearest(anchors: OrderedDict[str, _Anchor], own: NDArray[np.uint8]) -> _Anchor | None:
    """The anchor within reach that is most like the image; None where none is."""
    if not anchors:
        return None
    known = list(anchors.values())
    distances = np.bitwise_count(np.stack([anchor.hash for anchor in known]) ^ own).sum(axis=1)
    nearest = int(distances.argmin())
    return known[nearest] if distances[nearest] <= DISTANCE_MAX else None


def _counted(anchor: _Anchor, digest: bytes) -> QueryAlarm | None:
    if digest in anchor.seen:
        return None
    if len(anchor.seen) < ALARM_COUNT:
        anchor.seen.add(digest)
    anchor.count += 1
    if anchor.count % ALARM_COUNT:
        return None
    anchor.seen = {digest}
    return QueryAlarm(anchor.scan_sha256, anchor.count)
