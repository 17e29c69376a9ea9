"""Stored values from a verified view: native pixel data as it lies in the buffer, compressed through the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from gateway.finding import GatewayReason
from gateway.pixels.unexaminable import UnexaminableError
from signing import DicomError, VerifiedView

FRAMES_MAX = 64
"""Frames of one object that are examined: what one submission may cost the detection worker."""
FRAME_PIXELS_MAX = 1 << 25
"""Pixels of one frame: above the largest mammography detectors (about 29 million); 128 MiB in float32."""

_SAMPLES_PER_PIXEL, _PHOTOMETRIC_INTERPRETATION, _NUMBER_OF_FRAMES = 0x00280002, 0x00280004, 0x00280008
_ROWS, _COLUMNS = 0x00280010, 0x00280011
_BITS_ALLOCATED, _BITS_STORED, _HIGH_BIT, _PIXEL_REPRESENTATION = 0x00280100, 0x00280101, 0x00280102, 0x00280103
_PIXEL_DATA = 0x7FE00010
_OTHER_PIXEL_DATA = (0x7FE00008, 0x7FE00009)
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", _BIG_ENDIAN})

Pixels = NDArray[np.integer[Any]]
"""(frames, rows, columns), stored values."""


@dataclass(frozen=True, slots=True)
class PixelFormat:
    """How stored values lie in Pixel Data (PS3.5 8.1, PS3.3 C.7.6.3); read from the header, checked before use."""

    frames: int
    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric_interpretation: str

    @classmethod
    def of(cls, view: VerifiedView) -> Self:
        """Read the Image Pixel module of a grey image.

        Raises:
            UnexaminableError: `no_pixel_data`, `unsupported_image` or `wrong_size`.
        """
        if _PIXEL_DATA not in view:
            if any(tag in view for tag in _OTHER_PIXEL_DATA):
                raise _unsupported("floating-point pixel data is not supported")
            raise UnexaminableError(GatewayReason.NO_PIXEL_DATA, "the object has no Pixel Data to examine")
        try:
            photometric = view.text(_PHOTOMETRIC_INTERPRETATION) or "absent"
            samples = view.integer(_SAMPLES_PER_PIXEL)
            frames = view.integer(_NUMBER_OF_FRAMES)
            rows, columns, allocated, stored, high, representation = map(
                view.integer, (_ROWS, _COLUMNS, _BITS_ALLOCATED, _BITS_STORED, _HIGH_BIT, _PIXEL_REPRESENTATION)
            )
        except DicomError as error:
            raise _unsupported(error.detail) from error
        if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise _unsupported("the image is not grey (Samples per Pixel 1, MONOCHROME1 or MONOCHROME2)")
        if rows is None or columns is None or allocated is None or stored is None:
            raise _unsupported("Rows, Columns, Bits Allocated or Bits Stored is missing")
        if allocated not in (8, 16, 32):
            raise _unsupported(f"Bits Allocated is {allocated}, not 8, 16 or 32")
        high = stored - 1 if high is None else high
        if not 1 <= stored <= allocated or not stored - 1 <= high < allocated or representation not in (None, 0, 1):
            raise _unsupported(f"{stored} bits stored up to bit {high} do not fit {allocated} bits allocated")
        frames = 1 if frames is None else frames
        if min(rows, columns, frames) < 1:
            raise _wrong_size(f"{frames} x {rows} x {columns} (frames, rows, columns) hold no pixel")
        return cls(frames, rows, columns, allocated, stored, high, representation == 1, photometric)

    @property
    def byte_length(self) -> int:
        """Bytes of all frames, without padding."""
        return self.frames * self.rows * self.columns * self.bits_allocated // 8


class Decompressor(Protocol):
    """Decodes compressed frames where a hostile stream can do no harm."""

    def decompress(self, pixel_format: PixelFormat, transfer_syntax: str, items: memoryview) -> Pixels:
        """Decode encapsulated Pixel Data: its items, the Basic Offset Table first (PS3.5 A.4).

        Returns:
            (frames, rows, columns) unsigned words as wide as Bits Allocated, little endian.

        Raises:
            UnexaminableError: `unsupported_transfer_syntax`, or `unsupported_image` where the stream is bad.
        """


def decode(view: VerifiedView, decompressor: Decompressor, *, frames_max: int = FRAMES_MAX) -> Pixels:
    """Stored values of a grey image, from the very bytes that the view covers.

    Native values that fill their allocated bits are not copied. More than `frames_max` frames are refused.

    Returns:
        (frames, rows, columns) integers, sign extended; bits above the stored ones are cut off (PS3.5 8.1.1).

    Raises:
        UnexaminableError: `no_pixel_data`, `unsupported_image`, `wrong_size`, or `unsupported_transfer_syntax`.
    """
    pixel_format = PixelFormat.of(view)
    if pixel_format.frames > frames_max:
        raise _unsupported(f"{pixel_format.frames} frames; at most {frames_max} are examined")
    if pixel_format.rows * pixel_format.columns > FRAME_PIXELS_MAX:
        raise _unsupported(
            f"{pixel_format.rows} x {pixel_format.columns} pixels; at most {FRAME_PIXELS_MAX} are examined"
        )
    if view.transfer_syntax in _NATIVE:
        return _stored(_native(view, pixel_format), pixel_format)
    items = view.value(_PIXEL_DATA)
    return _stored(decompressor.decompress(pixel_format, view.transfer_syntax, items), pixel_format)


def _native(view: VerifiedView, pixel_format: PixelFormat) -> Pixels:
    """Allocated words as they lie in the buffer; their length must be exact but for one byte of padding."""
    value = view.value(_PIXEL_DATA)
    wanted = pixel_format.byte_length
    if len(value) != wanted + wanted % 2:
        shape = f"{pixel_format.frames} x {pixel_format.rows} x {pixel_format.columns}"
        raise _wrong_size(
            f"Pixel Data has {len(value)} bytes where {shape} at {pixel_format.bits_allocated} bits need {wanted}"
        )
    kind = np.dtype(f"<u{pixel_format.bits_allocated // 8}")
    if view.transfer_syntax == _BIG_ENDIAN:
        element = view.get(_PIXEL_DATA)
        assert element is not None
        # A MAC covers OW as 16-bit words and OB as bytes. Swapping by Bits Allocated where that is another unit would
        # show a model other pixels than were signed, of any signed scan that somebody rewrites in big endian.
        if (pixel_format.bits_allocated, element.vr) not in {(8, "OB"), (8, "OW"), (16, "OW")}:
            raise _unsupported(
                f"{pixel_format.bits_allocated} bits allocated in {element.vr} have no order, big endian"
            )
        if element.vr == "OW":
            value = memoryview(np.frombuffer(value, ">u2").astype("<u2").tobytes())
    words: Pixels = np.frombuffer(value, kind, count=wanted // kind.itemsize)
    return words.reshape(pixel_format.frames, pixel_format.rows, pixel_format.columns)


def _stored(words: Pixels, pixel_format: PixelFormat) -> Pixels:
    """Bits Stored below High Bit out of each unsigned word, sign extended where Pixel Representation is 1."""
    size = pixel_format.bits_allocated // 8
    unused_above = pixel_format.bits_allocated - 1 - pixel_format.high_bit
    unused = pixel_format.bits_allocated - pixel_format.bits_stored
    if pixel_format.signed:
        if not unused:
            return words.view(words.dtype.str.replace("u", "i"))
        left: Pixels = (words.astype(f"u{size}") << unused_above).view(f"i{size}")
        return left >> unused
    if not unused:
        return words
    if unused_above == unused:
        return words & ((1 << pixel_format.bits_stored) - 1)
    return (words.astype(f"u{size}") << unused_above) >> unused


def _unsupported(detail: str) -> UnexaminableError:
    return UnexaminableError(GatewayReason.UNSUPPORTED_IMAGE, detail)


def _wrong_size(detail: str) -> UnexaminableError:
    return UnexaminableError(GatewayReason.WRONG_SIZE, detail)
