"""The Merkle tree of RFC 6962: how records are bound, and what proves that one is in the log and that it only grew.

An entry carries the hashes of every perfect subtree that it completes, so that each inner hash has one place, an
append computes two hashes on average, and a proof reads as many entries as the tree is high.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gateway.errors import GatewayError

HASH_BYTES = 32
SIZE_MAX = 2**48
"""Entries that a proof may speak of; bounds the work of checking one."""

Node: TypeAlias = Callable[[int, int], bytes]
"""Hash of the perfect subtree number `index` of 2**level leaves, from (level, index)."""


class ProofError(GatewayError):
    """A proof does not prove what it should."""

    permanent = True


@dataclass(frozen=True, slots=True)
class Entry:
    """One record in its place."""

    index: int
    body: bytes
    """Canonical JSON (`record.body`)."""
    hashes: bytes
    """32 bytes each: of the leaf, then of every larger perfect subtree whose last leaf it is, the smallest first."""


@dataclass(frozen=True, slots=True)
class Edge:
    """The growing edge of a tree: all that is needed to append to it and to know its root."""

    size: int = 0
    peaks: tuple[bytes, ...] = ()
    """Hashes of the perfect subtrees that the leaves make up, the largest first: one for each bit set in `size`."""

    def grown(self, leaf: bytes) -> tuple[Edge, bytes]:
        """The edge with one more leaf, given by its hash, and the hashes that its entry carries."""
        peaks, hashes, size = list(self.peaks), [leaf], self.size
        while size & 1:
            hashes.append(node_hash(peaks.pop(), hashes[-1]))
            size >>= 1
        return Edge(self.size + 1, (*peaks, hashes[-1])), b"".join(hashes)

    def entry(self, body: bytes) -> tuple[Edge, Entry]:
        """The edge with one more record, and the entry that puts it there."""
        edge, hashes = self.grown(leaf_hash(body))
        return edge, Entry(self.size, body, hashes)

    @property
    def root(self) -> bytes:
        """MTH of all leaves (RFC 6962, 2.1)."""
        if not self.peaks:
            return hashlib.sha256(b"").digest()
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = node_hash(peak, root)
        return root

    @classmethod
    def read(cls, size: int, node: Node) -> Edge:
        """The edge of the first `size` leaves, from stored hashes."""
        peaks, first = [], 0
        for level in reversed(range(size.bit_length())):
            if size >> level & 1:
                peaks.append(node(level, first >> level))
                first += 1 << level
        return cls(size, tuple(peaks))


def leaf_hash(body: bytes) -> bytes:
    """SHA-256 over 0x00 and the record's bytes."""
    return hashlib.sha256(b"\x00" + body).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256 over 0x01 and the hashes of both halves."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def place_of(level: int, index: int) -> tuple[int, int]:
    """Where a perfect subtree's hash is stored: the index of the entry, and the offset in its hashes."""
    return ((index + 1) << level) - 1, level * HASH_BYTES


def inclusion_path(index: int, size: int, node: Node) -> list[bytes]:
    """PATH (RFC 6962, 2.1.1): what proves that leaf `index` is one of the first `size`, nearest the leaf first."""
    assert 0 <= index < size
    path, first, last = [], 0, size
    while last - first > 1:
        middle = first + _split(last - first)
        if index < middle:
            path.append(_range_hash(middle, last, node))
            last = middle
        else:
            path.append(_range_hash(first, middle, node))
            first = middle
    return path[::-1]


def consistency_path(old: int, new: int, node: Node) -> list[bytes]:
    """PROOF (RFC 6962, 2.1.2): what proves that the first `old` leaves are still the first of `new`."""
    assert 0 < old <= new
    path, first, last, whole = [], 0, new, True
    while old != last:
        middle = first + _split(last - first)
        if old <= middle:
            path.append(_range_hash(middle, last, node))
            last = middle
        else:
            path.append(_range_hash(first, middle, node))
            first, whole = middle, False
    if not whole:
        path.append(_range_hash(first, last, node))
    return path[::-1]


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that the leaf of this hash is number `index` of the tree (RFC 9162, 2.1.3.2); raises `ProofError`."""
    _expect(0 <= index < size <= SIZE_MAX, f"there is no record {index} among {size}")
    place, last, computed = index, size - 1, leaf
    for step in path:
        _expect(last > 0, "the proof is too long")
        if place & 1 or place == last:
            computed = node_hash(step, computed)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            computed = node_hash(computed, step)
        place, last = place >> 1, last >> 1
    _expect(not last and computed == root, f"the proof does not lead from record {index} to the root")


def verify_consistency(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Check that one tree is the beginning of the other (RFC 9162, 2.1.4.2); raises `ProofError`."""
    _expect(0 <= old <= new <= SIZE_MAX, f"a log of {new} records cannot have begun as one of {old}")
    if old in (0, new):
        _expect(not path and old_root == (new_root if old == new else Edge().root), "the roots do not go together")
        return
    steps = list(path) if old & (old - 1) else [old_root, *path]
    _expect(bool(steps), "the proof is too short")
    place, last = old - 1, new - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    before = after = steps[0]
    for step in steps[1:]:
        _expect(last > 0, "the proof is too long")
        if place & 1 or place == last:
            before, after = node_hash(step, before), node_hash(step, after)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            after = node_hash(after, step)
        place, last = place >> 1, last >> 1
    _expect(not last and (before, after) == (old_root, new_root), f"the first {old} records are not those of before")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ProofError(otherwise)


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << ((count - 1).bit_length() - 1)


def _range_hash(first: int, last: int, node: Node) -> bytes:
    """MTH of the leaves from `first` to before `last`, `first` being where such a subtree can begin."""
    count = last - first
    if count & (count - 1) == 0:
        level = count.bit_length() - 1
        return node(level, first >> level)
    middle = first + _split(count)
    return node_hash(_range_hash(first, middle, node), _range_hash(middle, last, node))
