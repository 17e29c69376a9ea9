"""Finds where two objects differ in what a signature covers, element by element, in the canonical stream's order."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import zip_longest
from typing import Any

from signing import canonical
from signing.dataset import DataSet, Element, Span
from signing.dictionary import keyword, name

SHOWN_BYTES = 64
_BLOCK = 2**20


class Kind(StrEnum):
    """How an element differs."""

    ABSENT_IN_A = "absent_in_a"
    ABSENT_IN_B = "absent_in_b"
    VR = "vr"
    LENGTH = "length"
    VALUE = "value"


@dataclass(frozen=True, slots=True)
class Difference:
    """One element, item or fragment whose canonical bytes differ."""

    kind: Kind
    tag: int
    path: str
    """Such as `ContentSequence[2].TextValue`; `PixelData[0]` is the offset table, `PixelData[1]` the first fragment."""
    offset: int | None
    """Of the first byte that differs, in the canonical value; None where there is nothing to compare."""
    length_a: int | None
    length_b: int | None
    value_a: bytes = field(default=b"", repr=False)
    """Up to 64 bytes from `offset` on; patient data, perhaps."""
    value_b: bytes = field(default=b"", repr=False)

    def as_json(self, *, show_values: bool) -> dict[str, Any]:
        """An entry under `differences`; values only where they are asked for."""
        found: dict[str, Any] = {
            "path": self.path, "tag": name(self.tag), "kind": str(self.kind),
            "offset": self.offset, "length_a": self.length_a, "length_b": self.length_b,
        }  # fmt: skip
        if show_values:
            found |= {"value_a": _shown(self.value_a), "value_b": _shown(self.value_b)}
        return found


def differences(a: DataSet, b: DataSet, *, without: Collection[int] = ()) -> Iterator[Difference]:
    """Every difference in what a MAC over everything would cover, in the order of the data set.

    Signatures themselves, group lengths and the like are never covered, so they never differ; neither do lengths of
    sequences, byte order, or an implicit VR that the dictionary resolves.

    Args:
        a: one object.
        b: the other.
        without: tags of the main data set to pass over.
    """
    left = [element for element in a if element.tag not in without]
    right = [element for element in b if element.tag not in without]
    yield from _data_sets(a, left, b, right, "")


def _data_sets(
    a: DataSet, in_a: Iterable[Element], b: DataSet, in_b: Iterable[Element], prefix: str
) -> Iterator[Difference]:
    ours, theirs = _covered(in_a), _covered(in_b)
    for tag in sorted(ours.keys() | theirs.keys()):
        yield from _elements(a, ours.get(tag), b, theirs.get(tag), tag, prefix + keyword(tag))


def _covered(elements: Iterable[Element]) -> dict[int, Element]:
    return {each.tag: each for each in elements if canonical.is_signable(each)}


def _elements(
    a: DataSet, in_a: Element | None, b: DataSet, in_b: Element | None, tag: int, path: str
) -> Iterator[Difference]:
    if in_a is None or in_b is None:
        kind = Kind.ABSENT_IN_A if in_a is None else Kind.ABSENT_IN_B
        yield Difference(kind, tag, path, None, in_a and in_a.length, in_b and in_b.length)
    elif _vr(in_a) != _vr(in_b) or _form(in_a) != _form(in_b):
        shown = _vr(in_a).encode(), _vr(in_b).encode()
        yield Difference(Kind.VR, tag, path, None, in_a.length, in_b.length, *shown)
    elif in_a.items is not None and in_b.items is not None:
        for place, (ours, theirs) in enumerate(zip_longest(in_a.items, in_b.items)):
            at = f"{path}[{place}]"
            if ours is None or theirs is None:
                yield Difference(Kind.ABSENT_IN_A if ours is None else Kind.ABSENT_IN_B, tag, at, None, None, None)
            else:
                yield from _data_sets(a, ours, b, theirs, f"{at}.")
    elif in_a.fragments is not None and in_b.fragments is not None:
        for place, (first, second) in enumerate(zip_longest(in_a.fragments, in_b.fragments)):
            yield from _fragments(a, first, b, second, tag, f"{path}[{place}]")
    else:
        yield from _values(_value(a, in_a), _value(b, in_b), in_a.length, in_b.length, tag, path)


def _fragments(
    a: DataSet, in_a: Span | None, b: DataSet, in_b: Span | None, tag: int, path: str
) -> Iterator[Difference]:
    if in_a is None or in_b is None:
        kind = Kind.ABSENT_IN_A if in_a is None else Kind.ABSENT_IN_B
        yield Difference(kind, tag, path, None, in_a and in_a.length, in_b and in_b.length)
    else:
        yield from _values(_part(a, in_a), _part(b, in_b), in_a.length, in_b.length, tag, path)


def _value(data_set: DataSet, element: Element) -> Iterator[canonical.Chunk]:
    """The canonical value of an ordinary element, without its header."""
    chunks = canonical.stream(data_set, [element], explicit=False)  # so that header and value come apart
    next(chunks)
    return chunks


def _part(data_set: DataSet, span: Span) -> Iterator[canonical.Chunk]:
    yield data_set.data[span.offset : span.offset + span.length]


def _values(
    a: Iterator[canonical.Chunk], b: Iterator[canonical.Chunk], length_a: int, length_b: int, tag: int, path: str
) -> Iterator[Difference]:
    at = 0
    for ours, theirs in zip_longest(_blocks(a), _blocks(b), fillvalue=b""):
        if ours != theirs:
            place = _first_difference(ours, theirs)
            kind = Kind.VALUE if length_a == length_b else Kind.LENGTH
            shown = ours[place : place + SHOWN_BYTES], theirs[place : place + SHOWN_BYTES]
            yield Difference(kind, tag, path, at + place, length_a, length_b, *shown)
            return
        at += len(ours)


def _blocks(chunks: Iterator[canonical.Chunk]) -> Iterator[bytes]:
    """Pieces of equal length on both sides, copied one at a time: comparing `bytes` is a memcmp."""
    for chunk in chunks:
        for start in range(0, len(chunk), _BLOCK):
            yield bytes(chunk[start : start + _BLOCK])


def _first_difference(a: bytes, b: bytes) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _vr(element: Element) -> str:
    """Encapsulated Pixel Data is hashed as OB whatever the file says (PS3.5 A.4)."""
    return "OB" if element.fragments is not None else element.vr


def _form(element: Element) -> tuple[bool, bool]:
    return element.items is not None, element.fragments is not None


def _shown(value: bytes) -> str:
    text = value.decode("ascii", "replace")
    return text if text.isascii() and text.isprintable() else value.hex(" ")
