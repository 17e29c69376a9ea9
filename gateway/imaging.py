"""From stored values to the model's input: the one rendering, differentiable, for stage, fit, evaluation and attack."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from gateway.finding import GatewayReason
from gateway.profile import Profile
from gateway.unexaminable import UnexaminableError

VoiFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

MAGNITUDE_MAX = 1e12
"""Largest size of a rescaled value, window centre or width: beyond it 32-bit arithmetic loses the grey levels."""
PIXEL_ASPECT_MAX = 16.0
"""Largest ratio of row to column spacing that is believed."""


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
            detail = f"Window Width must be {wanted} for VOI LUT Function {self.function} (PS3.3 C.11.2.1.2)"
            raise UnexaminableError(GatewayReason.UNSUPPORTED_IMAGE, detail)
        if max(abs(self.center), self.width) > MAGNITUDE_MAX:
            detail = f"Window Center or Window Width lies beyond {MAGNITUDE_MAX:g}"
            raise UnexaminableError(GatewayReason.UNSUPPORTED_IMAGE, detail)


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A Modality or VOI LUT (PS3.3 C.11.1.1, C.11.2.1.1): values outside its input range take its ends."""

    first: float
    """Input value that maps to the first entry."""
    entries: tuple[float, ...]
    ceiling: float
    """Largest output that the table's bit depth can hold."""

    def apply(self, x: Tensor) -> Tensor:
        """Look up each value; between whole inputs the table is read linearly, so that it has a gradient."""
        table = torch.tensor(self.entries, dtype=torch.float32, device=x.device)
        place = (x - self.first).clamp(0, len(self.entries) - 1)
        below = place.detach().floor().clamp(max=max(len(self.entries) - 2, 0)).long()
        above = (below + 1).clamp(max=len(self.entries) - 1)
        return torch.lerp(table[below], table[above], place - below)


@dataclass(frozen=True, slots=True)
class Rendering:
    """What an object's header says about its stored values; the default is a plain 8-bit grey image."""

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
    inverted: bool = False
    """MONOCHROME1: the least value is shown white."""
    pixel_aspect: float = 1.0
    """Distance between rows over distance between columns."""
    ends: tuple[float, float] = field(init=False)
    """Least and greatest value after the modality LUT."""

    def __post_init__(self) -> None:
        if self.modality_table is not None:
            ends = (min(self.modality_table.entries), max(self.modality_table.entries))
        else:
            first, last = (value * self.slope + self.intercept for value in self.stored)
            ends = (min(first, last), max(first, last))
        if not all(math.isfinite(end) for end in ends):
            detail = "Rescale Slope and Rescale Intercept give values that are not finite"
            raise UnexaminableError(GatewayReason.NOT_FINITE, detail)
        if max(map(abs, ends)) > MAGNITUDE_MAX:
            detail = f"Rescale Slope and Rescale Intercept give values beyond {MAGNITUDE_MAX:g}"
            raise UnexaminableError(GatewayReason.UNSUPPORTED_IMAGE, detail)
        if not 1 / PIXEL_ASPECT_MAX <= self.pixel_aspect <= PIXEL_ASPECT_MAX:
            detail = f"rows and columns are spaced more than {PIXEL_ASPECT_MAX:g} to 1"
            raise UnexaminableError(GatewayReason.UNSUPPORTED_IMAGE, detail)
        object.__setattr__(self, "ends", ends)

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
        frames: (N, rows, columns) or (N, 1, rows, columns) stored values, float32.
        rendering: the object's own parameters.
        profile: the model's; its window for the modality goes before the object's, and where neither has one the
            full stored range is shown.

    Returns:
        (N, channels, height, width) float32 as the model takes it: in the profile's `range`, then less `mean`,
        over `std`. Letterboxed unless the profile stretches: proportions are kept, pixel spacing heeded, the rest
        is filled with the lower end of the range.
    """
    assert frames.dtype == torch.float32
    if frames.ndim == 3:
        frames = frames.unsqueeze(1)
    assert frames.ndim == 4
    assert frames.shape[1] == 1
    grey = _windowed(frames, rendering, profile)  # (N, 1, rows, columns), 0 to 1
    if rendering.inverted:
        grey = 1.0 - grey
    return _scaled(_resized(grey, rendering.pixel_aspect, profile), profile)


def from_uint8(images: Tensor, profile: Profile) -> Tensor:
    """Map 8-bit grey images linearly to the profile's `range`, whatever windows it has.

    Args:
        images: (N, rows, columns) or (N, 1, rows, columns), uint8, or float32 from 0 to 255 where a gradient is
            wanted; an attack rounds its result to whole levels before it is judged.
        profile: the model's.

    Returns:
        (N, channels, height, width) float32, as from `render`.
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


def _resized(grey: Tensor, pixel_aspect: float, profile: Profile) -> Tensor:
    """Bring (N, 1, rows, columns) to the profile's size."""
    height, width = profile.input.size
    inner = (height, width)
    if profile.input.aspect == "letterbox":
        tall, wide = grey.shape[2] * pixel_aspect, float(grey.shape[3])
        factor = min(height / tall, width / wide)
        inner = (max(1, min(height, round(tall * factor))), max(1, min(width, round(wide * factor))))
    if grey.shape[2:] != inner:
        if profile.input.interpolation == "nearest":
            grey = functional.interpolate(grey, size=inner, mode="nearest-exact")
        else:
            mode = profile.input.interpolation
            grey = functional.interpolate(grey, size=inner, mode=mode, align_corners=False, antialias=True)
            grey = grey.clamp(0.0, 1.0) if mode == "bicubic" else grey  # bicubic overshoots at edges
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    if inner != (height, width):
        grey = functional.pad(grey, (left, width - inner[1] - left, top, height - inner[0] - top))
    return grey


def _scaled(grey: Tensor, profile: Profile) -> Tensor:
    """0 to 1 onto `range`, less `mean`, over `std`, in each channel."""
    low, high = profile.input.range
    means = profile.input.mean or (0.0,) * profile.input.channels
    stds = profile.input.std or (1.0,) * profile.input.channels
    scale = grey.new_tensor([(high - low) / std for std in stds]).view(1, -1, 1, 1)
    shift = grey.new_tensor([(low - mean) / std for mean, std in zip(means, stds, strict=True)]).view(1, -1, 1, 1)
    return grey * scale + shift
