"""Says before signing what will break an object's signature: which element, which rule, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from typing import Any

from signing import canonical
from signing.dataset import Element
from signing.dictionary import (
    DIGITAL_SIGNATURES_SEQUENCE,
    EXPLICIT_BIG_ENDIAN,
    EXTENDED_OFFSET_TABLE,
    EXTENDED_OFFSET_TABLE_LENGTHS,
    LONG_VRS,
    MAC_PARAMETERS_SEQUENCE,
    PIXEL_DATA,
    TEXT_VRS,
    keyword,
    name,
)
from signing.elements import Elements, Limits, read
from signing.errors import DicomError, SignatureError
from signing.fragments import check_structure, holds_item
from signing.profiles import Profile, profiles
from signing.view import require_matching_meta

FINDINGS_MAX = 1000
"""Of one object; a hostile one could have a finding for each of its elements."""

_NESTED_BYTES_MAX = 16384  # of one sequence that holds sequences


class Severity(StrEnum):
    """How bad it is."""

    REFUSED = "refused"
    """It cannot be signed, or will be refused as soon as it is verified."""
    FRAGILE = "fragile"
    """Ordinary handling on the way may break the signature, or part of it is not protected."""
    DIFFERS = "differs"
    """Other tools may not agree about a signature that is right."""


class Code(StrEnum):
    """What can be found."""

    MALFORMED = "malformed"
    LIMITS = "limits"
    ODD_LENGTH = "odd_length"
    DISORDER = "disorder"
    DUPLICATE_ELEMENT = "duplicate_element"
    FILE_META_MISMATCH = "file_meta_mismatch"
    REQUIRED_ATTRIBUTE_ABSENT = "required_attribute_absent"
    REQUIRED_ATTRIBUTE_UNSIGNABLE = "required_attribute_unsignable"
    PRIVATE_IMPLICIT = "private_implicit"
    UN_ELEMENT = "un_element"
    UN_UNDEFINED_LENGTH = "un_undefined_length"
    UNSIGNABLE_SEQUENCE = "unsignable_sequence"
    LONG_VALUE_SHORT_VR = "long_value_short_vr"
    FRAGMENT_STRUCTURE = "fragment_structure"
    ITEM_LIKE_FRAGMENT = "item_like_fragment"
    NO_EXTENDED_OFFSET_TABLE = "no_extended_offset_table"
    IMPLICIT_VR = "implicit_vr"
    BIG_ENDIAN = "big_endian"
    NESTED_SIGNATURE = "nested_signature"
    REDUNDANT_PADDING = "redundant_padding"
    LARGE_NESTED_CONTENT = "large_nested_content"


_UNSIGNABLE = frozenset(
    (Code.UN_ELEMENT, Code.UN_UNDEFINED_LENGTH, Code.PRIVATE_IMPLICIT, Code.UNSIGNABLE_SEQUENCE,
     Code.LONG_VALUE_SHORT_VR)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that will break a signature; holds tags and lengths, never a value."""

    code: Code
    tag: int | None
    path: str
    """Keywords and item numbers down to the element, such as `ContentSequence[2].TextValue`."""
    detail: str
    spared: bool = False
    """The profile can do without what no signature can cover here."""

    @property
    def severity(self) -> Severity:
        """How bad it is."""
        return Severity.FRAGILE if self.spared else _RULES[self.code][0]

    @property
    def rule(self) -> str:
        """The rule that is broken, and where it stands."""
        return _RULES[self.code][1]

    @property
    def advice(self) -> str:
        """What to do about it."""
        return _RULES[self.code][2]

    def as_json(self) -> dict[str, Any]:
        """An entry under `findings`."""
        tag = None if self.tag is None else name(self.tag)
        return {
            "code": str(self.code), "severity": str(self.severity), "tag": tag, "path": self.path,
            "detail": self.detail, "rule": self.rule, "advice": self.advice,
        }  # fmt: skip


def lint(data: bytes | memoryview, profile: str = "inference", *, limits: Limits | None = None) -> tuple[Finding, ...]:
    """What stands in the way of a signature of this profile over a DICOM file; the first 1000 findings.

    Where the file breaks a rule of the encoding itself, nothing after that place is looked at.
    """
    try:
        elements = read(data, limits=limits or Limits())
    except DicomError as error:
        return (_refusal(error),)
    return tuple(islice(_findings(elements, profiles()[profile]), FINDINGS_MAX))


def is_readable(findings: tuple[Finding, ...]) -> bool:
    """It is a DICOM object, whatever is wrong with it."""
    return not any(finding.code in {Code.MALFORMED, Code.LIMITS} for finding in findings)


def _refusal(error: DicomError) -> Finding:
    code = Code(error.fault or str(error.reason))
    return Finding(code, error.tag, "" if error.tag is None else keyword(error.tag), error.detail)


def _findings(elements: Elements, profile: Profile) -> Iterator[Finding]:
    """(1) the file (2) what the profile wants (3) each element (4) compressed pixels."""
    try:
        require_matching_meta(elements)  # (1)
    except DicomError as error:
        yield _refusal(error)
    if not elements.explicit:
        yield Finding(Code.IMPLICIT_VR, None, "", "the file leaves VRs to the reader's dictionary")
    if elements.transfer_syntax == EXPLICIT_BIG_ENDIAN:
        yield Finding(Code.BIG_ENDIAN, None, "", "the file is Explicit VR Big Endian")
    chosen = set(profile.select(elements))
    yield from _profile(elements, profile, set(chosen))  # (2)
    for element in elements:  # (3)
        if element.tag not in (MAC_PARAMETERS_SEQUENCE, DIGITAL_SIGNATURES_SEQUENCE):
            for finding in _element(elements, element, keyword(element.tag), nested=False):
                spared = not profile.everything and finding.code in _UNSIGNABLE
                yield replace(finding, spared=True) if spared else finding
            yield from _large(elements, element)
    yield from _pixels(elements, chosen)  # (4)


def _profile(elements: Elements, profile: Profile, covered: set[int]) -> Iterator[Finding]:
    while (missing := profile.uncovered(elements, covered)) is not None:
        covered.add(missing)
        if missing in elements:
            detail = f"{name(missing)} must be signed for the profile {profile.name}, and cannot be"
            yield Finding(Code.REQUIRED_ATTRIBUTE_UNSIGNABLE, missing, keyword(missing), detail)
        else:
            detail = f"{name(missing)} must be present for the profile {profile.name}"
            yield Finding(Code.REQUIRED_ATTRIBUTE_ABSENT, missing, keyword(missing), detail)


def _element(elements: Elements, element: Element, path: str, *, nested: bool) -> Iterator[Finding]:
    tag = element.tag
    if nested and (tag >> 16 == 0xFFFA or tag == MAC_PARAMETERS_SEQUENCE):
        yield Finding(Code.NESTED_SIGNATURE, tag, path, f"{name(tag)} lies within an item")
        return
    if canonical.is_forbidden(tag):
        return
    if element.vr == "UN":
        yield _unknown(elements, element, path)
    elif element.items is not None:
        if not canonical.is_signable(element) and not nested:
            detail = f"{name(tag)} holds an element that no signature can cover, so neither can it"
            yield Finding(Code.UNSIGNABLE_SEQUENCE, tag, path, detail)
        for place, item in enumerate(element.items):
            for inner in item:
                yield from _element(elements, inner, f"{path}[{place}].{keyword(inner.tag)}", nested=True)
    elif element.vr not in LONG_VRS and element.length > 65535:
        detail = f"{name(tag)} has {element.length} bytes, and VR {element.vr}"
        yield Finding(Code.LONG_VALUE_SHORT_VR, tag, path, detail)
    elif element.vr in TEXT_VRS and element.length:
        yield from _padding(elements, element, path)


def _unknown(elements: Elements, element: Element, path: str) -> Finding:
    if element.items is not None:
        detail = f"{name(element.tag)} has VR UN and no length"
        return Finding(Code.UN_UNDEFINED_LENGTH, element.tag, path, detail)
    if not elements.explicit and element.tag & 0x10000:
        return Finding(Code.PRIVATE_IMPLICIT, element.tag, path, f"{name(element.tag)} is private, its VR not given")
    return Finding(Code.UN_ELEMENT, element.tag, path, f"{name(element.tag)} has VR UN")


def _padding(elements: Elements, element: Element, path: str) -> Iterator[Finding]:
    end = element.offset + element.length
    tail = bytes(elements.data[max(element.offset, end - 64) : end])
    padded = len(tail) - len(tail.rstrip(b" \0"))
    wanted = b"\0" if element.vr == "UI" else b" "
    if padded > 1 or (padded == 1 and tail[-1:] != wanted):
        detail = f"{name(element.tag)} ends with padding that it does not need, or of the wrong kind"
        yield Finding(Code.REDUNDANT_PADDING, element.tag, path, detail)


def _large(elements: Elements, element: Element) -> Iterator[Finding]:
    if not any(inner.items for item in element.items or () for inner in item) or not canonical.is_signable(element):
        return
    size = sum(len(chunk) for chunk in canonical.stream(elements, [element], explicit=elements.explicit))
    if size > _NESTED_BYTES_MAX:
        detail = f"{name(element.tag)} has sequences in its items, and {size} bytes"
        yield Finding(Code.LARGE_NESTED_CONTENT, element.tag, keyword(element.tag), detail)


def _pixels(elements: Elements, chosen: set[int]) -> Iterator[Finding]:
    fragments = elements.fragments()
    if not fragments:
        return
    path, fixed = keyword(PIXEL_DATA), {EXTENDED_OFFSET_TABLE, EXTENDED_OFFSET_TABLE_LENGTHS} <= chosen
    if not fixed:
        detail = "nothing that is signed says where one fragment ends"
        yield Finding(Code.NO_EXTENDED_OFFSET_TABLE, PIXEL_DATA, path, detail)
        if any(holds_item(fragment) for fragment in fragments):
            detail = "a fragment holds what may have been the border between two"
            yield Finding(Code.ITEM_LIKE_FRAGMENT, PIXEL_DATA, path, detail)
            return
    try:
        check_structure(elements, elements.transfer_syntax)
    except SignatureError as error:
        yield Finding(Code.FRAGMENT_STRUCTURE, PIXEL_DATA, path, error.detail)


_REFUSED, _FRAGILE, _DIFFERS = Severity
_RULES: dict[Code, tuple[Severity, str, str]] = {
    Code.MALFORMED: (
        _REFUSED, "the file is well-formed DICOM (PS3.5 7, PS3.10 7)", "Ask the sender for a well-formed object.",
    ),
    Code.LIMITS: (
        _REFUSED, "the object stays within the limits on size and expansion", "Split the object, or send it natively.",
    ),
    Code.ODD_LENGTH: (
        _REFUSED, "every value has an even length (PS3.5 7.1.1)",
        "Have the sender pad it: text with a space, UIDs and bytes with a zero.",
    ),
    Code.DISORDER: (_REFUSED, "elements stand in ascending order of tag (PS3.5 7.1)", "Have the object rewritten."),
    Code.DUPLICATE_ELEMENT: (
        _REFUSED, "a data set holds each tag once (PS3.5 7.1)",
        "Find out which of the two is meant; readers differ in which one they show.",
    ),
    Code.FILE_META_MISMATCH: (
        _REFUSED, "the file meta information names this object (PS3.10 7.1)",
        "Have the file written anew; its meta information belongs to another object.",
    ),
    Code.REQUIRED_ATTRIBUTE_ABSENT: (
        _REFUSED, "the profile's attributes are present (PS3.15 C)",
        "Fill it in at the source, or sign with another profile.",
    ),
    Code.REQUIRED_ATTRIBUTE_UNSIGNABLE: (
        _REFUSED, "the profile's attributes can be signed (PS3.15 C)", "See the other findings about this element.",
    ),
    Code.PRIVATE_IMPLICIT: (
        _REFUSED, "an element's VR is known (PS3.15 A.3): an implicit VR file does not give that of private ones",
        "Send the object in an explicit VR transfer syntax from the device on, or remove the private element.",
    ),
    Code.UN_ELEMENT: (
        _REFUSED, "no MAC covers an element of VR UN (PS3.3 C.12.1.1.3.1.1)",
        "Have its true VR written by the device, or remove the element before signing.",
    ),
    Code.UN_UNDEFINED_LENGTH: (
        _REFUSED, "no MAC covers an element of VR UN; other tools rewrite this one as SQ (PS3.5 6.2.2)",
        "Have it written as a sequence before signing, or remove it.",
    ),
    Code.UNSIGNABLE_SEQUENCE: (
        _REFUSED, "no MAC covers a sequence with an element of VR UN in it (PS3.3 C.12.1.1.3.1.1)",
        "Mend or remove the element inside it that is named beside this.",
    ),
    Code.LONG_VALUE_SHORT_VR: (
        _REFUSED, "a value of 64 KiB or more does not fit its VR (PS3.5 7.1.2)",
        "Shorten the value; it cannot be written in explicit VR.",
    ),
    Code.FRAGMENT_STRUCTURE: (
        _REFUSED, "fragments and offset tables give whole frames, as many as are stated (PS3.5 A.4)",
        "Compress the object anew.",
    ),
    Code.ITEM_LIKE_FRAGMENT: (
        _REFUSED, "the borders of fragments, which no MAC covers, cannot be moved (PS3.5 A.4)",
        "Have an Extended Offset Table written before signing (PS3.3 C.7.6.3.1.8), or compress anew.",
    ),
    Code.NO_EXTENDED_OFFSET_TABLE: (
        _FRAGILE, "the borders of fragments are fixed by a signed Extended Offset Table (PS3.3 C.7.6.3.1.8)",
        "Have one written before signing; without it some compressed frames will have to be refused.",
    ),
    Code.IMPLICIT_VR: (
        _FRAGILE, "a signed object is kept in an explicit VR transfer syntax (PS3.15 A.3)",
        "Send it as Explicit VR Little Endian.",
    ),
    Code.BIG_ENDIAN: (
        _FRAGILE, "Explicit VR Big Endian is retired (PS3.5 A.3)", "Send it as Explicit VR Little Endian.",
    ),
    Code.NESTED_SIGNATURE: (
        _FRAGILE, "signatures inside items are outside the MAC of the whole (PS3.3 C.12.1.1.3.1.1)",
        "Nothing: but know that the inner signature can be removed without breaking the outer one.",
    ),
    Code.REDUNDANT_PADDING: (
        _DIFFERS, "at most one padding character, and only to make a length even (PS3.5 6.2)",
        "Have the value written without it: other tools trim it before they hash, and will call the signature broken.",
    ),
    Code.LARGE_NESTED_CONTENT: (
        _DIFFERS, "content of sequences within sequences is small where other tools must verify it",
        "Nothing for Scanward, which covers nested content in full; other tools may differ.",
    ),
}  # fmt: skip
assert set(_RULES) == set(Code)
