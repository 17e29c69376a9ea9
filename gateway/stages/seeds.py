"""From the seed key to what the random detectors draw from: secret, another for each scan, the same for the same bytes.

A fresh secret for each request would let an attacker send one scan again and again until a draw lets it pass; a draw
that follows from the pixels alone he could compute and aim at.
"""

from __future__ import annotations

import hashlib
import hmac
import struct


def seeds_of(key: bytes, artefact_sha256: str, scan_sha256: str, frames: int) -> tuple[int, ...]:
    """Seeds of a scan's frames: HMAC-SHA-256 over artefact and scan, stretched by SHAKE-256 to one for each frame.

    Args:
        key: the gateway's seed key, 32 bytes.
        artefact_sha256: digest of the artefact's manifest, hexadecimal: newly fitted detectors draw anew.
        scan_sha256: digest of the bytes received, hexadecimal.
        frames: at least 1.

    Returns:
        One signed 64-bit number a frame.
    """
    assert frames >= 1
    drawn = hmac.digest(key, bytes.fromhex(artefact_sha256) + bytes.fromhex(scan_sha256), "sha256")
    return struct.unpack(f">{frames}q", hashlib.shake_256(drawn).digest(8 * frames))
