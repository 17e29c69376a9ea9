"""Defects to put in on purpose: a fuzzer that does not find them finds nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import signing.canonical
import signing.der
from signing.view import VerifiedView


def view_of_everything() -> None:
    """The view is built from the whole data set, not from what was hashed."""

    def of_signed(elements: Any, covered: Any) -> VerifiedView:
        return VerifiedView._over(elements, elements.elements, signed=True)

    VerifiedView.of_signed = staticmethod(of_signed)  # type: ignore[assignment,method-assign]


def fragments_unchecked() -> None:
    """The structure of compressed pixels is believed."""
    sys.modules["signing.verify"].check_structure = lambda *_: None  # `signing.verify` is the function


def deep_items_unhashed() -> None:
    """Sequences within sequences are left out of the MAC."""
    whole = signing.canonical._nested

    def nested(data: Any, element: Any, *rest: Any) -> Iterator[Any]:
        if element.items is not None:
            items = tuple(tuple(inner for inner in item if inner.items is None) for item in element.items)
            element = element._replace(items=items)
        return whole(data, element, *rest)

    signing.canonical._nested = nested


def der_length_unchecked() -> None:
    """A length that is longer than it need be is taken."""

    def values(data: bytes, *, only_first: bool = False) -> Iterator[Any]:
        at = 0
        while at < len(data):
            start, tag, size = at, data[at], data[at + 1] if at + 1 < len(data) else 0
            content = at + 2 + (size & 0x7F if size & 0x80 else 0)
            length = int.from_bytes(data[at + 2 : content], "big") if size & 0x80 else size
            at = content + length
            if at > len(data):
                raise signing.der.DerError("too long")
            yield signing.der.Tlv(tag, data[start:at], data[content:at])
            if only_first:
                return

    signing.der._values = values


PLANTED: dict[str, tuple[str, Callable[[], None]]] = {
    "view_of_everything": ("view", view_of_everything),
    "fragments_unchecked": ("view", fragments_unchecked),
    "deep_items_unhashed": ("view", deep_items_unhashed),
    "der_length_unchecked": ("der", der_length_unchecked),
}
"""Name -> the target that must find it, and what plants it."""
