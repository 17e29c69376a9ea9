"""Stored values from a verified view: native pixel data as it lies in the buffer, compressed through the decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydicom.pixels.processing import convert_color_space

from gateway.finding import GatewayReason
from gateway.pixels.unexaminable import UnexaminableError
from signing import DicomError, VerifiedView

FRAMES_MAX = 64
"""Frames of one object that are examined: what one submission may cost the detection worker."""
FRAME_PIXELS_MAX = 1 << 25
"""Pixels of one grey frame: above the largest mammography detectors (about 29 million); 128 MiB in float32."""
COLOUR_PIXELS_MAX = 1 << 24
"""Pixels of one frame in colour: above the cameras of skin and eye clinics; 192 MiB in float32."""

_SAMPLES_PER_PIXEL, _PHOTOMETRIC_INTERPRETATION, _NUMBER_OF_FRAMES = 0x00280002, 0x00280004, 0x00280008
_PLANAR_CONFIGURATION = 0x00280006
_ROWS, _COLUMNS = 0x00280010, 0x00280011
_BITS_ALLOCATED, _BITS_STORED, _HIGH_BIT, _PIXEL_REPRESENTATION = 0x00280100, 0x00280101, 0x00280102, 0x00280103
_PIXEL_DATA = 0x7FE00010
_OTHER_PIXEL_DATA = (0x7FE00008, 0x7FE00009)
_BIG_ENDIAN = "1.2.840.10008.1.2.2"
_NATIVE = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", _BIG_ENDIAN})

_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})
"""The last two are what JPEG 2000 makes of RGB on the way; its decoder gives RGB again."""

Pixels = NDArray[np.integer[Any]]
"""(frames, rows, columns) of a grey image, stored values; (frames, 3, rows, columns) of a colour one: red, green, blue.
"""


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
    planar: int = 0
    """Planar Configuration of a colour: 0, the samples of a pixel lie together; 1, those of a frame do."""

    @classmethod
    def of(cls, view: VerifiedView) -> Self:
        """Read the Image Pixel module of a grey or colour image.

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
            planar = view.integer(_PLANAR_CONFIGURATION)
            rows, columns, allocated, stored, high, representation = map(
                view.integer, (_ROWS, _COLUMNS, _BITS_ALLOCATED, _BITS_STORED, _HIGH_BIT, _PIXEL_REPRESENTATION)
            )
        except DicomError as error:
            raise _unsupported(error.detail) from error
        kinds = {1: _GREY, 3: _COLOUR}
        if samples not in kinds or photometric not in kinds[samples]:
            raise _unsupported(f"Photometric Interpretation is none of {', '.join(sorted(_GREY | _COLOUR))}")
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
        if photometric in _COLOUR:
            _require_plain_colour(photometric, allocated, stored, high, representation, planar)
        return cls(frames, rows, columns, allocated, stored, high, representation == 1, photometric, planar or 0)

    @property
    def samples(self) -> int:
        """Values of a pixel: 1 of grey, 3 of colour."""
        return 3 if self.photometric_interpretation in _COLOUR else 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of all frames once decoded, the samples of a colour last."""
        return (self.frames, self.rows, self.columns, *((3,) if self.samples == 3 else ()))

    @property
    def byte_length(self) -> int:
        """Bytes of all frames once decoded, without padding."""
        return math.prod(self.shape) * self.bits_allocated // 8


class Decompressor(Protocol):
    """Decodes compressed frames where a hostile stream can do no harm."""

    def decompress(self, pixel_format: PixelFormat, transfer_syntax: str, items: memoryview) -> Pixels:
        """Decode encapsulated Pixel Data: its items, the Basic Offset Table first (PS3.5 A.4).

        Returns:
            Unsigned words as wide as Bits Allocated, little endian, in the format's `shape`; a colour as RGB.

        Raises:
            UnexaminableError: `unsupported_transfer_syntax`, or `unsupported_image` where the stream is bad.
        """


def decode(view: VerifiedView, decompressor: Decompressor, *, frames_max: int = FRAMES_MAX) -> Pixels:
    """Stored values of a grey or colour image, from the very bytes that the view covers.

    Native values that fill their allocated bits are not copied. More than `frames_max` frames are refused.

    Returns:
        (frames, rows, columns) integers, sign extended; bits above the stored ones are cut off (PS3.5 8.1.1). Of a
        colour image (frames, 3, rows, columns): red, green and blue, whatever it is stored as.

    Raises:
        UnexaminableError: `no_pixel_data`, `unsupported_image`, `wrong_size`, or `unsupported_transfer_syntax`.
    """
    pixel_format = PixelFormat.of(view)
    if pixel_format.frames > frames_max:
        raise _unsupported(f"{pixel_format.frames} frames; at most {frames_max} are examined")
    most = FRAME_PIXELS_MAX if pixel_format.samples == 1 else COLOUR_PIXELS_MAX
    if pixel_format.rows * pixel_format.columns > most:
        raise _unsupported(f"{pixel_format.rows} x {pixel_format.columns} pixels; at most {most} are examined")
    if view.transfer_syntax in _NATIVE:
        words = _native(view, pixel_format)
    else:
        words = decompressor.decompress(pixel_format, view.transfer_syntax, view.value(_PIXEL_DATA))
    stored = _stored(words, pixel_format)
    return stored if pixel_format.samples == 1 else np.moveaxis(stored, 3, 1)


def _require_plain_colour(
    photometric: str, allocated: int, stored: int, high: int, representation: int | None, planar: int | None
) -> None:
    """Refuse colour whose samples are not plain unsigned words, or that no table of the standard turns into RGB."""
    if planar not in (0, 1):
        raise _unsupported("Planar Configuration of a colour image is neither 0 nor 1")
    if allocated not in (8, 16) or high != stored - 1 or representation == 1:
        raise _unsupported("a colour image is not of unsigned samples of 8 or 16 bits")
    if photometric.startswith("YBR_FULL") and (allocated, stored) != (8, 8):
        raise _unsupported(f"{photometric} is not of 8 bits")


def _native(view: VerifiedView, pixel_format: PixelFormat) -> Pixels:
    """Allocated words as they lie in the buffer; their length must be exact but for one byte of padding."""
    value = view.value(_PIXEL_DATA)
    halved = pixel_format.photometric_interpretation == "YBR_FULL_422"  # two pixels share their blue and their red
    if halved and pixel_format.columns % 2:
        raise _unsupported("YBR_FULL_422 of an odd number of columns")
    wanted = pixel_format.byte_length * 2 // 3 if halved else pixel_format.byte_length
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
    return words.reshape(pixel_format.shape) if pixel_format.samples == 1 else _rgb(words, pixel_format)


def _rgb(words: Pixels, pixel_format: PixelFormat) -> Pixels:
    """(frames, rows, columns, 3) red, green, blue of native samples (PS3.3 C.7.6.3.1.2 and C.7.6.3.1.3)."""
    frames, rows, columns, _ = pixel_format.shape
    photometric = pixel_format.photometric_interpretation
    if photometric in ("YBR_RCT", "YBR_ICT"):
        raise _unsupported(f"{photometric} belongs to JPEG 2000 alone")
    if photometric == "YBR_FULL_422":
        pairs = words.reshape(frames, rows, columns // 2, 4)  # two of luminance, one of blue, one of red
        both = pairs[..., 2:].repeat(2, axis=2)
        ybr = np.concatenate([pairs[..., :2].reshape(frames, rows, columns, 1), both], axis=3)
        return _from_differences(ybr)
    if pixel_format.planar:
        words = np.moveaxis(words.reshape(frames, 3, rows, columns), 1, 3)
    words = words.reshape(pixel_format.shape)
    return words if photometric == "RGB" else _from_differences(words)


def _from_differences(ybr: Pixels) -> Pixels:
    """RGB of 8-bit brightness, blueness and redness, in the last axis (PS3.3 C.7.6.3.1.2, YBR_FULL)."""
    rgb: Pixels = convert_color_space(ybr, "YBR_FULL", "RGB")
    return rgb


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
