"""Value representations, and the data dictionary for what a file leaves out (PS3.5 6.2, PS3.6)."""

from __future__ import annotations

import importlib.util
from contextlib import suppress
from functools import cache, lru_cache
from typing import Any

# PS3.5 table 7.1-1: these carry a 32-bit length after two reserved bytes.
LONG_VRS = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))

TEXT_VRS = frozenset(
    ("AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT")
)
_SHORT_VRS = (TEXT_VRS - LONG_VRS) | {"AT", "FD", "FL", "SL", "SS", "UL", "US"}

VR_FORMS: dict[bytes, tuple[str, int]] = {
    **{vr.encode(): (vr, 12) for vr in LONG_VRS},
    **{vr.encode(): (vr, 8) for vr in _SHORT_VRS},
}
"""VR as two bytes -> (VR, header length in bytes)."""


UNIT_BYTES = {
    **dict.fromkeys(("AT", "OW", "SS", "US"), 2),
    **dict.fromkeys(("FL", "OF", "OL", "SL", "UL"), 4),
    **dict.fromkeys(("FD", "OD", "OV", "SV", "UV"), 8),
}
"""VR -> bytes of the unit whose order depends on the transfer syntax (PS3.5 7.3)."""

EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
IMPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_BIG_ENDIAN = "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = frozenset((EXPLICIT_LITTLE_ENDIAN, IMPLICIT_LITTLE_ENDIAN, EXPLICIT_BIG_ENDIAN, DEFLATED))
"""Transfer syntaxes whose Pixel Data has a length; every other one encapsulates it (PS3.5 A.4)."""

SPECIFIC_CHARACTER_SET = 0x00080005
SOP_CLASS_UID = 0x00080016
SOP_INSTANCE_UID = 0x00080018
NUMBER_OF_FRAMES = 0x00280008
PIXEL_REPRESENTATION = 0x00280103
PIXEL_DATA = 0x7FE00010
EXTENDED_OFFSET_TABLE = 0x7FE00001
EXTENDED_OFFSET_TABLE_LENGTHS = 0x7FE00002
MAC_PARAMETERS_SEQUENCE = 0x4FFE0001
DIGITAL_SIGNATURES_SEQUENCE = 0xFFFAFFFA
DATA_SET_TRAILING_PADDING = 0xFFFCFFFC
ORIGINAL_ATTRIBUTES_SEQUENCE = 0x04000561


def name(tag: int) -> str:
    """`(gggg,eeee)`, the way the standard writes a tag."""
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def keyword(tag: int) -> str:
    """The attribute's keyword (PS3.6); a tag without one is written as eight hexadecimal digits."""
    return _entry(tag)[1] or f"{tag:08X}"


def tag_of(word: str) -> int | None:
    """The tag of a keyword, or of eight hexadecimal digits; None where it is neither."""
    found = _tags().get(word)
    if found is None and len(word) == 8:
        with suppress(ValueError):
            found = int(word, 16)
    return found


@lru_cache(maxsize=65536)
def implicit_vr(tag: int, signed_pixels: bool) -> str:
    """The VR of an element in an implicit VR data set (PS3.5 A.1, PS3.6).

    Private elements other than creators are UN: which private dictionary is right cannot be known.
    """
    number = tag & 0xFFFF
    if number == 0:
        return "UL"
    if tag & 0x10000:
        return "LO" if 0x10 <= number <= 0xFF else "UN"
    vr = _entry(tag)[0]
    if vr == "US or SS":
        return "SS" if signed_pixels else "US"
    if tag & 0xFF00FFFF == 0x50003000:  # Curve Data, whose points have a VR of their own
        return "OB"
    return "OW" if " or " in vr else vr


@lru_cache(maxsize=65536)
def _entry(tag: int) -> tuple[str, str]:
    """VR and keyword; UN and nothing where the standard does not know the tag."""
    dictionary = _pydicom_dictionary()
    entry = dictionary.DicomDictionary.get(tag)
    if entry is None and not tag & 0x10000:
        written = f"{tag:08x}"
        for mask, repeated in dictionary.RepeatersDictionary.items():  # 60xx3000 and the like
            if all(theirs in (ours, "x") for ours, theirs in zip(written, mask.lower(), strict=True)):
                entry = repeated
    return ("UN", "") if entry is None else (entry[0], entry[4])


@cache
def _tags() -> dict[str, int]:
    return {entry[4]: tag for tag, entry in _pydicom_dictionary().DicomDictionary.items() if entry[4]}


@cache
def _pydicom_dictionary() -> Any:
    """pydicom's table by itself: importing the package would take half a second and load its image decoders."""
    package = importlib.util.find_spec("pydicom")
    assert package is not None
    assert package.submodule_search_locations
    path = f"{package.submodule_search_locations[0]}/_dicom_dict.py"
    spec = importlib.util.spec_from_file_location("signing._dicom_dict", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
