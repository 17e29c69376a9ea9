"""From a DICOM file to stored values and back: attacked images take the same way as clean ones."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from numpy.typing import NDArray
from pydicom import dcmread, dcmwrite
from pydicom.uid import ExplicitVRLittleEndian
from torch import Tensor

from gateway.pixels.decode import Decompressor, PixelFormat, decode
from gateway.pixels.imaging import Rendering
from gateway.profile import Profile
from signing import VerifiedView, read

_PIXEL_DATA = 0x7FE00010
_IN_PLACE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"})
"""Transfer syntaxes whose stored values lie in the file as they are, least byte first."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An object as an attacker opens it."""

    content: bytes
    frames: Tensor
    """(frames, 1, rows, columns) float32 stored values."""
    rendering: Rendering
    """What its header says about them."""
    patient: str


def opened(content: bytes, profile: Profile, decompressor: Decompressor) -> Opened:
    """Read an object through the gateway's own parser and decoder.

    Raises:
        signing.DicomError: no DICOM file, or a broken one.
        UnexaminableError: an image that the gateway does not examine either.
    """
    view = VerifiedView.of_unsigned(read(content))
    values = decode(view, decompressor)
    frames = torch.from_numpy(values.astype(np.float32)).reshape(len(values), -1, *values.shape[-2:])
    return Opened(content, frames, Rendering.of(view, profile), view.text(0x00100020) or "")


def written(source: Opened, frames: Tensor) -> bytes:
    """Return the object with other stored values, and every other byte as it was.

    A compressed object is written uncompressed, explicit VR little endian, since a codec may not keep what was
    stored; so is colour of another kind than RGB, as RGB. Write clean images through here as well: what then differs
    between both is the attack alone.

    Args:
        source: the object.
        frames: (frames, 1, rows, columns) whole numbers that its bit depth can hold.

    Raises:
        ValueError: other shapes, or values that cannot be stored.
    """
    if frames.shape != source.frames.shape:
        raise ValueError(f"frames must be {tuple(source.frames.shape)}, got {tuple(frames.shape)}")
    low, high = source.rendering.stored
    if not torch.equal(frames, frames.round()) or frames.min() < low or frames.max() > high:
        raise ValueError(f"frames must be whole numbers from {low} to {high}")
    elements = read(source.content)
    view = VerifiedView.of_unsigned(elements)
    form = PixelFormat.of(view)
    values = frames.cpu().numpy().astype(np.int64)
    in_place = view.transfer_syntax in _IN_PLACE and not form.photometric_interpretation.startswith("YBR")
    if not (in_place and form.planar):
        values = np.moveaxis(values, 1, -1)
    if not in_place:
        return _rewritten(source.content, _words(values, form, np.zeros(values.shape, np.int64)))
    element = elements.get(_PIXEL_DATA)
    assert element is not None
    start, kind = element.offset, np.dtype(f"<u{form.bits_allocated // 8}")
    before = np.frombuffer(source.content, kind, values.size, start).astype(np.int64).reshape(values.shape)
    words = _words(values, form, before)
    return source.content[:start] + words + source.content[start + len(words) :]


def _words(values: NDArray[np.int64], form: PixelFormat, before: NDArray[np.int64]) -> bytes:
    """Return allocated words that hold stored values where they belong, with the other bits as before."""
    shift = form.high_bit + 1 - form.bits_stored
    mask = ((1 << form.bits_stored) - 1) << shift
    words = (before & ~mask) | ((values << shift) & mask)
    return words.astype(f"<u{form.bits_allocated // 8}").tobytes()


def _rewritten(content: bytes, words: bytes) -> bytes:
    """Return the object uncompressed, with other Pixel Data."""
    dataset = dcmread(BytesIO(content))
    if dataset.SamplesPerPixel == 3:
        dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    dataset.PixelData = words + b"\0" * (len(words) % 2)
    dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    dataset["PixelData"].is_undefined_length = False
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    out = BytesIO()
    dcmwrite(out, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return out.getvalue()
