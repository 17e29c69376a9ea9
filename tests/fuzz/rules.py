"""What must hold for every input: the rules that the fuzzer tries to break."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

from edits import Script, edited
from originals import NOW, Originals

import signing
from signing import DicomError, SignatureError, Trust, VerifiedView, canonical, der
from signing.certificates import parse_certificate
from signing.dataset import DataSet, Element
from signing.dictionary import PIXEL_DATA
from signing.elements import Limits
from signing.hashed import Hashed
from signing.streaming import Incoming
from signing.timestamp import TokenError, read_token


class BrokenRuleError(AssertionError):
    """An input for which a rule does not hold."""


class ViewRule:
    """No byte of the verified view may change while the verdict stays accepted."""

    def __init__(self, originals: Originals) -> None:
        self._originals = originals
        self._shown: set[object] = set()
        for place, data in enumerate(originals.objects):
            views = [view for trust in originals.trusts if (view := _believed(data, trust)) is not None]
            if not views:
                raise BrokenRuleError(f"original {place} is not accepted")
            self._shown |= set(map(snapshot, views))

    def check(self, script: bytes) -> None:
        """Edit an original, and look at what is believed of it."""
        data = edited(Script(script), self._originals.objects)
        for trust in self._originals.trusts:
            view = _believed(data, trust)
            if view is not None and snapshot(view) not in self._shown:
                raise BrokenRuleError("accepted, and the verified view is not that of any signed object")


def _believed(data: bytes, trust: Trust) -> VerifiedView | None:
    """The verified view; hashing while bytes arrive must come to the same."""
    try:
        elements = signing.read(data)
        at_once = _verified(data, None, trust)
        pixels = elements.get(PIXEL_DATA)
        incoming = Incoming(data[: len(data) // 2 if pixels is None else pixels.offset + 2])
        incoming.write(data[len(data) // 2 if pixels is None else pixels.offset + 2 :])
        on_arrival = _verified(data, incoming.hashed(), trust)
    except DicomError:
        return None
    if (at_once and snapshot(at_once)) != (on_arrival and snapshot(on_arrival)):
        raise BrokenRuleError("hashed while it arrived, and judged another way")
    return at_once


def _verified(data: bytes, hashed: Hashed | None, trust: Trust) -> VerifiedView | None:
    try:
        return signing.verify(signing.read(data, hashed=hashed), trust, at=NOW).view
    except SignatureError:
        return None


def snapshot(view: VerifiedView) -> object:
    """Everything that a reader of the view can learn from it."""
    return view.transfer_syntax, view.little_endian, view.charset, _elements(view, view.elements, top=True)


def _elements(data_set: DataSet, elements: Iterable[Element], *, top: bool = False) -> tuple[object, ...]:
    return tuple(_element(data_set, element, top=top) for element in elements)


def _element(data_set: DataSet, element: Element, *, top: bool) -> tuple[object, ...]:
    if top and data_set.get(element.tag) is not element:
        raise BrokenRuleError("what is found by tag is not what is listed")
    spans = element.fragments
    if spans is not None:
        parts: Sequence[object] = [bytes(data_set.data[each.offset : each.offset + each.length]) for each in spans]
    elif element.items is not None:
        parts = [_elements(data_set, item) for item in element.items]
    else:
        parts = [bytes(data_set.data[element.offset : element.offset + element.length])]
    return element.tag, element.vr, tuple(parts)


WALKER_LIMITS = Limits(bytes_max=1 << 20, inflated_bytes_max=4 << 20, elements_max=20_000)


def check_walker(data: bytes) -> None:
    """Whatever the bytes: a refusal by name, or elements that lie in order within their surroundings."""
    Incoming(data, limits=WALKER_LIMITS)  # never fails, whatever has come so far
    try:
        elements = signing.read(data, limits=WALKER_LIMITS)
    except DicomError:
        return
    _lie_within(elements.elements, 0, len(elements.data))
    covered = [each for each in elements if canonical.is_signable(each)]
    try:
        streamed = sum(map(len, canonical.stream(elements, covered, explicit=elements.explicit)))
    except DicomError:
        return
    if streamed > 3 * len(elements.data) + 64:
        raise BrokenRuleError("the canonical stream is longer than the data set can account for")


def _lie_within(elements: Sequence[Element], start: int, end: int) -> None:
    last = -1
    for element in elements:
        value_end = element.offset + element.length
        if not (start <= element.start < element.offset <= value_end <= element.end <= end and element.tag > last):
            raise BrokenRuleError("an element does not lie where it may")
        start, last = element.end, element.tag
        inner = element.offset
        for item in element.items or ():
            _lie_within(item, inner, value_end)
            inner = item[-1].end if item else inner
        for span in element.fragments or ():
            if not inner <= span.offset <= span.offset + span.length <= value_end:
                raise BrokenRuleError("a fragment does not lie where it may")
            inner = span.offset + span.length


class DerRule:
    """What is read as DER is the only way to write it, and a token's time cannot be changed."""

    def __init__(self, originals: Originals) -> None:
        stamped = signing.read(originals.objects[-1]).items(0xFFFAFFFA)[0]
        self._signature = der.unpadded(bytes(stamped.value(0x04000120)))
        self._time = read_token(der.unpadded(bytes(stamped.value(0x04000310))), self._signature, ()).time
        self.seeds = tuple(der.unpadded(bytes(stamped.value(tag))) for tag in (0x04000115, 0x04000120, 0x04000310))

    def check(self, data: bytes) -> None:
        """As a value, a certificate, and a time-stamp token; a seed by number, then edits, or the bytes themselves."""
        if data[:1] == b"\xff":
            data = self._patched(data[1:])
        try:
            value = der.unpadded(data)
            if data not in (value, value + b"\0") or _again(value) != value:
                raise BrokenRuleError("read, and written another way")
        except der.DerError:
            pass
        with suppress(ValueError):
            parse_certificate(data)
        try:
            token = read_token(data, self._signature, ())
        except TokenError:
            return
        if token.time != self._time:
            raise BrokenRuleError("a token's time was changed")

    def _patched(self, data: bytes) -> bytes:
        """A seed in which bytes are overwritten: number, then (offset, byte) pairs."""
        script = Script(data)
        seed = bytearray(self.seeds[script.below(len(self.seeds))])
        while not script.is_over:
            seed[script.below(len(seed))] = script.take(1)[0]
        return bytes(seed)


def _again(value: bytes) -> bytes:
    """Written from what was read; a primitive value stands for itself."""
    parsed = der.parse(value)
    if not parsed.tag & 0x20:
        return der.encode(parsed.tag, parsed.content)
    return der.encode(parsed.tag, *(_again(child.whole) for child in parsed.children()))
