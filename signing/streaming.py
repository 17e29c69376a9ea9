"""Hashes what signatures cover while an object's bytes arrive, so that little is left to do after the last one.

MAC Parameters (4FFE,0001) stand before Pixel Data (7FE0,0010), so algorithm and list are known in time. Followed are
objects in Explicit VR Little Endian, whose Pixel Data is its own canonical form; others are hashed once they are whole.
"""

from __future__ import annotations

from itertools import islice

from signing import canonical
from signing.dictionary import EXPLICIT_LITTLE_ENDIAN, MAC_PARAMETERS_SEQUENCE, PIXEL_DATA
from signing.elements import Elements, Limits, read
from signing.errors import DicomError, SignatureError
from signing.filemeta import read_file_meta
from signing.hashed import Hashed, Prefix
from signing.mac import MAC_ALGORITHM, listed_tags
from signing.policy import MACS

_FOLLOWED_MAX = 2
"""Different hashes that one object is worth; more are made afterwards."""


class Incoming:
    """One object on its way in. It judges nothing: what it cannot follow is left to verification."""

    def __init__(self, beginning: bytes | bytearray | memoryview, *, limits: Limits | None = None) -> None:
        """`beginning` is all that has come so far; it is followed if its header is whole."""
        self._at = len(beginning)
        self._end = 0
        self._prefixes: dict[tuple[str, tuple[int, ...]], Prefix] = {}
        try:
            if read_file_meta(memoryview(beginning))[0].transfer_syntax == EXPLICIT_LITTLE_ENDIAN:
                self._follow(read(beginning, limits=limits or Limits(), growing=True))
        except (DicomError, SignatureError, ValueError):
            self._prefixes.clear()  # whatever is wrong with it, verification will say

    def write(self, chunk: bytes | memoryview) -> None:
        """The next bytes."""
        if self._at < self._end and self._prefixes:
            pixels = memoryview(chunk)[: self._end - self._at]
            for prefix in self._prefixes.values():
                prefix.digest.update(pixels)
        self._at += len(chunk)

    def hashed(self) -> Hashed | None:
        """What was hashed, once the last byte of Pixel Data has come."""
        return Hashed(self._prefixes) if self._prefixes and self._at >= self._end else None

    def _follow(self, elements: Elements) -> None:
        pixels = elements.get(PIXEL_DATA)
        if pixels is None or pixels.end <= len(elements.data):
            return  # nothing, or nothing more, to come
        self._end = pixels.end
        for parameters in islice(elements.items(MAC_PARAMETERS_SEQUENCE), _FOLLOWED_MAX):
            mac, listed = parameters.text(MAC_ALGORITHM) or "", listed_tags(parameters)
            covered = canonical.covered_elements(elements, listed)
            if mac in MACS and covered and covered[-1] == pixels:
                digest = canonical.new_hash(mac)
                canonical.update(digest, elements, covered[:-1], explicit=True)
                digest.update(elements.data[pixels.start :])
                self._prefixes[mac, listed] = Prefix(covered, digest)
