"""From stored values to the model's input: the one rendering, differentiable, for stage, fit, evaluation and attack."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Self, TypeVar, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gateway.finding import GatewayReason
from gateway.pixels.unexaminable import UnexaminableError
from gateway.profile import Profile
from signing import DicomError, VerifiedView

_T = TypeVar("_T")

VoiFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

MAGNITUDE_MAX = 1e12
"""Largest size of a rescaled value, window centre or width: beyond it 32-bit arithmetic loses the grey levels."""
PIXEL_ASPECT_MAX = 16.0
"""Largest ratio of row to column spacing that is believed."""
_FLAT = 1e-6
"""Share of its largest value by which resizing may move a picture that has one value everywhere."""

_MODALITY, _SAMPLES_PER_PIXEL, _PHOTOMETRIC_INTERPRETATION = 0x00080060, 0x00280002, 0x00280004
_BITS_STORED, _PIXEL_REPRESENTATION = 0x00280101, 0x00280103
_RESCALE_INTERCEPT, _RESCALE_SLOPE = 0x00281052, 0x00281053
_WINDOW_CENTER, _WINDOW_WIDTH, _VOI_LUT_FUNCTION = 0x00281050, 0x00281051, 0x00281056
_MODALITY_LUT_SEQUENCE, _VOI_LUT_SEQUENCE = 0x00283000, 0x00283010
_LUT_DESCRIPTOR, _LUT_DATA = 0x00283002, 0x00283006
_PIXEL_SPACING, _IMAGER_PIXEL_SPACING, _PIXEL_ASPECT_RATIO = 0x00280030, 0x00181164, 0x00280034
_FUNCTIONAL_GROUPS = (0x52009229, 0x52009230)


@dataclass(frozen=True, slots=True)
class Window:
    """An object's values-of-interest transformation (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

    center: float
    width: float
    function: VoiFunction = "LINEAR"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.center) and math.isfinite(self.width)):
            raise UnexaminableError(GatewayReason.NOT_FINITE, "Window Center or Window Width is not a finite number")
        least = 1.0 if self.function == "LINEAR" else 0.0
        if self.width < least or self.width == 0.0:
            wanted = "at least 1" if self.function == "LINEAR" else "above 0"
            raise _unsupported(f"Window Width must be {wanted} for VOI LUT Function {self.function} (PS3.3 C.11.2.1.2)")
        if max(abs(self.center), self.width) > MAGNITUDE_MAX:
            raise _unsupported(f"Window Center or Window Width lies beyond {MAGNITUDE_MAX:g}")


@dataclass(frozen=True, slots=True, eq=False)
class LookupTable:
    """A Modality or VOI LUT (PS3.3 C.11.1.1, C.11.2.1.1): values outside its input range take its ends."""

    first: float
    """Input value that maps to the first entry."""
    entries: Tensor
    """(entries,) float32."""
    ceiling: float
    """Largest output that the table's bit depth can hold."""

    def apply(self, x: Tensor) -> Tensor:
        """Look up each value; between whole inputs the table is read linearly, so that it has a gradient."""
        table = self.entries.to(x.device)
        place = (x - self.first).clamp(0, len(self.entries) - 1)
        below = place.detach().floor().clamp(max=max(len(self.entries) - 2, 0)).long()
        above = (below + 1).clamp(max=len(self.entries) - 1)
        return torch.lerp(table[below], table[above], place - below)


@dataclass(frozen=True, slots=True)
class Rendering:
    """What an object's header says about its stored values; the default is a plain 8-bit image, grey or colour."""

    stored: tuple[int, int] = (0, 255)
    """Least and greatest storable value: from Bits Stored and Pixel Representation."""
    slope: float = 1.0
    """Rescale Slope: units of the modality LUT's output (Hounsfield for CT) for one stored value."""
    intercept: float = 0.0
    modality_table: LookupTable | None = None
    """Modality LUT Sequence; in place of slope and intercept."""
    window: Window | None = None
    voi_table: LookupTable | None = None
    """VOI LUT Sequence; used where there is no window."""
    modality: str = ""
    """Whose window the profile may fix; empty of a colour, which no window is made for."""
    inverted: bool = False
    """MONOCHROME1: the least value is shown white."""
    pixel_aspect: float = 1.0
    """Distance between rows over distance between columns."""
    ends: tuple[float, float] = field(init=False)
    """Least and greatest value after the modality LUT."""

    def __post_init__(self) -> None:
        if self.modality_table is not None:
            ends = (float(self.modality_table.entries.min()), float(self.modality_table.entries.max()))
        else:
            first, last = (value * self.slope + self.intercept for value in self.stored)
            ends = (min(first, last), max(first, last))
        if not all(math.isfinite(end) for end in ends):
            detail = "Rescale Slope and Rescale Intercept give values that are not finite"
            raise UnexaminableError(GatewayReason.NOT_FINITE, detail)
        if max(map(abs, ends)) > MAGNITUDE_MAX:
            raise _unsupported(f"Rescale Slope and Rescale Intercept give values beyond {MAGNITUDE_MAX:g}")
        if self.modality_table is None and self.slope == 0.0:
            raise _unsupported("Rescale Slope is 0, which makes every pixel the same")
        if not 1 / PIXEL_ASPECT_MAX <= self.pixel_aspect <= PIXEL_ASPECT_MAX:
            raise _unsupported(f"rows and columns are spaced more than {PIXEL_ASPECT_MAX:g} to 1")
        object.__setattr__(self, "ends", ends)

    @classmethod
    def of(cls, view: VerifiedView, profile: Profile) -> Self:
        """Read the parameters from the elements that may be believed.

        The object's own window is not looked at where the profile fixes one for its modality.

        Raises:
            UnexaminableError: `not_finite` where the rescaling is no number; `unsupported_image` where the header
                cannot be followed: functional groups (enhanced multi-frame objects), a bad window, a bad table.
        """
        if any(tag in view for tag in _FUNCTIONAL_GROUPS):
            raise _unsupported("rescaling and window lie in functional groups, which are not supported")
        bits = _read(view.integer, _BITS_STORED) or 0
        if not 1 <= bits <= 32:
            raise _unsupported(f"Bits Stored is {bits}, not 1 to 32")
        if (_read(view.integer, _SAMPLES_PER_PIXEL) or 1) > 1:  # LUTs and windows are for grey alone (PS3.3 C.11)
            return cls(stored=(0, (1 << bits) - 1), pixel_aspect=_aspect_of(view))
        signed = _read(view.integer, _PIXEL_REPRESENTATION) == 1
        modality = _read(view.text, _MODALITY) or ""
        fixed = profile.window_for(modality) is not None
        window = None if fixed else _window_of(view)
        return cls(
            stored=(-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1),
            slope=_rescale(view, _RESCALE_SLOPE, "Rescale Slope", absent=1.0),
            intercept=_rescale(view, _RESCALE_INTERCEPT, "Rescale Intercept", absent=0.0),
            modality_table=_table_of(view, _MODALITY_LUT_SEQUENCE),
            window=window,
            voi_table=_table_of(view, _VOI_LUT_SEQUENCE) if window is None and not fixed else None,
            modality=modality,
            inverted=_read(view.text, _PHOTOMETRIC_INTERPRETATION) == "MONOCHROME1",
            pixel_aspect=_aspect_of(view),
        )

    def affine(self, profile: Profile) -> tuple[float, float] | None:
        """Scale and shift that take a stored value to its place in the window, 0 to 1 before clipping.

        None where the way is not a straight line: a lookup table, a sigmoid, or a window one value wide. The
        size of one 8-bit grey level of the window, in stored values, is 1 / (255 * abs(scale)).
        """
        if self.modality_table is not None:
            return None
        fixed = profile.window_for(self.modality)
        if fixed is not None:
            low, width = fixed.center - fixed.width / 2, fixed.width
        elif self.window is not None:
            if self.window.function == "SIGMOID" or (self.window.width == 1.0 and self.window.function == "LINEAR"):
                return None
            exact = self.window.function == "LINEAR_EXACT"
            width = self.window.width if exact else self.window.width - 1
            low = self.window.center - width / 2 - (0.0 if exact else 0.5)
        elif self.voi_table is not None:
            return None
        else:
            low, width = self.ends[0], self.ends[1] - self.ends[0] or 1.0
        return self.slope / width, (self.intercept - low) / width


def render(frames: Tensor, rendering: Rendering, profile: Profile) -> Tensor:
    """Show stored values to the model: modality LUT, window, polarity, size, scale; with a gradient throughout.

    Args:
        frames: (N, rows, columns) grey or (N, 1 or 3, rows, columns) stored values, float32.
        rendering: the object's own parameters.
        profile: the model's; its window for the modality goes before the object's, and where neither has one the
            full stored range is shown.

    Returns:
        (N, channels, height, width) float32 as the model takes it: in the profile's `range`, then less `mean`,
        over `std`. Letterboxed unless the profile stretches: proportions are kept, pixel spacing heeded, the rest
        is filled with the lower end of the range. Grey stands in each channel of the model.

    Raises:
        UnexaminableError: `unsupported_image`: colour, for a model of one channel.
    """
    return _scaled(_resized(shown(frames, rendering, profile), rendering.pixel_aspect, profile), profile)


def shown(frames: Tensor, rendering: Rendering, profile: Profile) -> Tensor:
    """Show stored values as a person sees them: modality LUT, window, polarity; each pixel in its place.

    Args:
        frames: (N, rows, columns) grey or (N, 1 or 3, rows, columns) stored values, float32.
        rendering: the object's own parameters.
        profile: the model's, whose window counts first.

    Returns:
        (N, 1 or 3, rows, columns), 0 to 1.

    Raises:
        UnexaminableError: `unsupported_image`: colour, for a model of one channel.
    """
    assert frames.dtype == torch.float32
    if frames.ndim == 3:
        frames = frames.unsqueeze(1)
    assert frames.ndim == 4
    assert frames.shape[1] in (1, 3)
    if frames.shape[1] > profile.input.channels:
        raise _unsupported("the image is in colour, and the model takes one channel of grey")
    light = _windowed(frames, rendering, profile)
    return 1.0 - light if rendering.inverted else light


def place_of(shape: tuple[int, int], pixel_aspect: float, profile: Profile) -> tuple[slice, slice]:
    """Rows and columns of the model's input that an image of this (rows, columns) fills; the rest is border."""
    height, width = profile.input.size
    inner = (height, width)
    if profile.input.aspect == "letterbox":
        tall, wide = shape[0] * pixel_aspect, float(shape[1])
        factor = min(height / tall, width / wide)
        inner = (max(1, min(height, round(tall * factor))), max(1, min(width, round(wide * factor))))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    return slice(top, top + inner[0]), slice(left, left + inner[1])


def require_content(pixels: NDArray[np.float32]) -> None:
    """Refuse a picture of nothing: a model answers there too, and detectors find it as calm as can be.

    Args:
        pixels: (frames, channels, rows, columns), as a model takes them; a blank frame among others is none.

    Raises:
        UnexaminableError: `unsupported_image`, where each channel has one value everywhere.
    """
    if (np.ptp(pixels, axis=(0, 2, 3)) <= _FLAT * (1 + np.abs(pixels).max())).all():
        raise _unsupported("every pixel has the same value: there is nothing to examine")


def from_uint8(images: Tensor, profile: Profile) -> Tensor:
    """Map 8-bit images linearly to the profile's `range`, whatever windows it has.

    Args:
        images: (N, rows, columns) grey or (N, 1 or 3, rows, columns), uint8, or float32 from 0 to 255 where a
            gradient is wanted; an attack rounds its result to whole levels before it is judged.
        profile: the model's.

    Returns:
        (N, channels, height, width) float32, as from `render`, whose errors it raises.
    """
    return render(images.float(), _EIGHT_BIT, profile)


_EIGHT_BIT = Rendering()


def _windowed(x: Tensor, rendering: Rendering, profile: Profile) -> Tensor:
    """Modality LUT, then window: 0 at the lower end and below, 1 at the upper end and above."""
    if (line := rendering.affine(profile)) is not None:
        scale, shift = line
        return (x * scale + shift).clamp(0.0, 1.0)
    x = (
        x * rendering.slope + rendering.intercept
        if rendering.modality_table is None
        else rendering.modality_table.apply(x)
    )
    fixed = profile.window_for(rendering.modality)
    if fixed is not None:
        return ((x - fixed.center) / fixed.width + 0.5).clamp(0.0, 1.0)
    if rendering.window is not None:
        return _through(rendering.window, x)
    if rendering.voi_table is not None:
        return (rendering.voi_table.apply(x) / rendering.voi_table.ceiling).clamp(0.0, 1.0)
    low, high = rendering.ends
    return ((x - low) / (high - low or 1.0)).clamp(0.0, 1.0)


def _through(window: Window, x: Tensor) -> Tensor:
    """The three VOI LUT functions of PS3.3 C.11.2.1.2 and C.11.2.1.3, onto 0 to 1."""
    if window.function == "SIGMOID":
        return torch.sigmoid(4.0 * (x - window.center) / window.width)
    if window.function == "LINEAR_EXACT":
        return ((x - window.center) / window.width + 0.5).clamp(0.0, 1.0)
    if window.width == 1.0:
        return (x > window.center - 0.5).to(x.dtype)
    return ((x - (window.center - 0.5)) / (window.width - 1.0) + 0.5).clamp(0.0, 1.0)


def _resized(light: Tensor, pixel_aspect: float, profile: Profile) -> Tensor:
    """Bring (N, 1 or 3, rows, columns) to the profile's size."""
    height, width = profile.input.size
    down, across = place_of((light.shape[2], light.shape[3]), pixel_aspect, profile)
    inner = (down.stop - down.start, across.stop - across.start)
    if light.shape[2:] != inner:
        if profile.input.interpolation == "nearest":
            light = functional.interpolate(light, size=inner, mode="nearest-exact")
        else:
            mode = profile.input.interpolation
            light = functional.interpolate(light, size=inner, mode=mode, align_corners=False, antialias=True)
            light = light.clamp(0.0, 1.0) if mode == "bicubic" else light  # bicubic overshoots at edges
    if inner != (height, width):
        light = functional.pad(light, (across.start, width - across.stop, down.start, height - down.stop))
    return light


def _scaled(light: Tensor, profile: Profile) -> Tensor:
    """0 to 1 onto `range`, less `mean`, over `std`, in each channel of the model."""
    low, high = profile.input.range
    means = profile.input.mean or (0.0,) * profile.input.channels
    stds = profile.input.std or (1.0,) * profile.input.channels
    scale = light.new_tensor([(high - low) / std for std in stds]).view(1, -1, 1, 1)
    shift = light.new_tensor([(low - mean) / std for mean, std in zip(means, stds, strict=True)]).view(1, -1, 1, 1)
    return light * scale + shift


def _unsupported(detail: str) -> UnexaminableError:
    return UnexaminableError(GatewayReason.UNSUPPORTED_IMAGE, detail)


def _read(reader: Callable[[int], _T], tag: int) -> _T:
    """A header value, or the reason why the header cannot be followed."""
    try:
        return reader(tag)
    except DicomError as error:
        raise _unsupported(error.detail) from error


def _rescale(view: VerifiedView, tag: int, name: str, *, absent: float) -> float:
    try:
        number = view.decimal(tag)
    except DicomError as error:
        raise UnexaminableError(GatewayReason.NOT_FINITE, f"{name} is not one finite number") from error
    return absent if number is None else number


def _window_of(view: VerifiedView) -> Window | None:
    """The first of the object's windows; further ones are alternatives for a person to choose from."""
    centers, widths = _read(view.decimals, _WINDOW_CENTER), _read(view.decimals, _WINDOW_WIDTH)
    if not centers and not widths:
        return None
    if len(centers) != len(widths):
        raise _unsupported("Window Center and Window Width do not come in pairs")
    function = _read(view.text, _VOI_LUT_FUNCTION) or "LINEAR"
    for known in get_args(VoiFunction):
        if function == known:
            return Window(centers[0], widths[0], known)
    raise _unsupported("VOI LUT Function is none of LINEAR, LINEAR_EXACT and SIGMOID")


def _table_of(view: VerifiedView, sequence: int) -> LookupTable | None:
    """The first table of a Modality or VOI LUT Sequence; PS3.3 C.11.1.1.1 and C.11.2.1.1."""
    items = _read(view.items, sequence)
    if not items:
        return None
    descriptor = _read(items[0].integers, _LUT_DESCRIPTOR)
    if len(descriptor) != 3 or not 8 <= descriptor[2] <= 16:
        raise _unsupported("LUT Descriptor is not three numbers with 8 to 16 bits an entry")
    count = descriptor[0] & 0xFFFF or 0x10000
    value, data = items[0].value(_LUT_DATA), items[0].get(_LUT_DATA)
    if data is not None and not view.little_endian:
        if data.vr not in ("OW", "SS", "US"):  # the words that a MAC covers are of another size, or bytes
            raise _unsupported(f"LUT Data of VR {data.vr} has no order, big endian")
        value = memoryview(np.frombuffer(value, ">u2").astype("<u2").tobytes())
    if len(value) == 2 * count:
        entries = np.frombuffer(value, "<u2")
    elif descriptor[2] == 8 and len(value) == count + count % 2:
        entries = np.frombuffer(value, np.uint8)[:count]
    else:
        raise _unsupported(f"LUT Data has {len(value)} bytes for {count} entries")
    return LookupTable(descriptor[1], torch.from_numpy(entries.astype(np.float32)), 2.0 ** descriptor[2] - 1)


def _aspect_of(view: VerifiedView) -> float:
    """Row over column spacing, from the first attribute that gives it; square pixels where none does."""
    for tag in (_PIXEL_SPACING, _IMAGER_PIXEL_SPACING, _PIXEL_ASPECT_RATIO):
        if spacing := _read(view.decimals, tag):
            if len(spacing) != 2 or not (spacing[0] > 0 and spacing[1] > 0):
                raise _unsupported("Pixel Spacing is not two numbers above 0")
            return spacing[0] / spacing[1]
    return 1.0
