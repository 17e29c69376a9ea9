"""Tampering with the object around the pixels: what a signature must see, whatever a detector says."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

from pydicom import Dataset, dcmread, dcmwrite
from pydicom.multival import MultiValue
from pydicom.uid import generate_uid

from signing import read
from signing.testing import flip_pixel_bit, strip_signatures

_PIXEL_DATA = 0x7FE00010
_EMPTY_ITEM = b"\xfe\xff\x00\xe0\x00\x00\x00\x00"

Tampering = Callable[[bytes], bytes]
"""Maps a whole DICOM file to the file that an intruder sends instead."""


def metadata(content: bytes) -> bytes:
    """Return the object as another patient's: name and identifier, nothing else."""

    def change(dataset: Dataset) -> None:
        dataset.PatientID, dataset.PatientName = "TAMPERED", "Tampered^Patient"

    return edited(content, change)


def window(content: bytes) -> bytes:
    """Return the object with its window moved by half its width: the same pixels, shown otherwise.

    Harmless where the profile fixes the window; else the model sees another image.
    """

    def change(dataset: Dataset) -> None:
        centre, width = (_first(dataset.get(name), 256.0) for name in ("WindowCenter", "WindowWidth"))
        dataset.WindowCenter, dataset.WindowWidth = f"{centre + width / 2:g}", f"{width:g}"

    return edited(content, change)


def pixels(content: bytes) -> bytes:
    """Return the object with one bit of one pixel changed."""
    return flip_pixel_bit(content)


def fragments(content: bytes) -> bytes:
    """Return an encapsulated object with an empty fragment more: other bytes, the same pixels to most decoders.

    Raises:
        ValueError: its pixels are not encapsulated.
    """
    return empty_fragment(content, 1.0)


def stripping(content: bytes) -> bytes:
    """Return the object without its signatures."""
    return strip_signatures(content)


def replay(content: bytes) -> bytes:
    """Return the same pixels and patient as a new instance of another study, as if taken anew."""

    def change(dataset: Dataset) -> None:
        old = str(dataset.SOPInstanceUID)
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid(
            entropy_srcs=[old, "replay"]
        )
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=[old, "study"])

    return edited(content, change)


TAMPERINGS: dict[str, Tampering] = {
    "metadata": metadata,
    "window": window,
    "pixels": pixels,
    "fragments": fragments,
    "stripping": stripping,
    "replay": replay,
}
"""By name, in the order of the documentation."""


def empty_fragment(content: bytes, where: float) -> bytes:
    """Return an encapsulated object with an empty fragment more, after a share of those that it has.

    Raises:
        ValueError: its pixels are not encapsulated.
    """
    element = read(content).get(_PIXEL_DATA)
    if element is None or element.fragments is None:
        raise ValueError("the object's pixels are not encapsulated: there are no fragments")
    after = element.fragments[round(where * (len(element.fragments) - 1))]
    end = after.offset + after.length
    return content[:end] + _EMPTY_ITEM + content[end:]


def _first(value: Any, absent: float) -> float:
    """Return the first of an element's numbers."""
    if value is None or value == "":
        return absent
    return float(value[0] if isinstance(value, MultiValue) else value)


def edited(content: bytes, change: Callable[[Dataset], None]) -> bytes:
    """Return the object with some elements changed, its transfer syntax and all others kept."""
    dataset = dcmread(BytesIO(content))
    change(dataset)
    out = BytesIO()
    dcmwrite(out, dataset, enforce_file_format=True)
    return out.getvalue()
