"""Draws a heat map over the image that it speaks of, for people: a PNG with a legend that says what it is not."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

PANEL_PIXELS = 512
"""Length of the longer side of each of the two panels."""
SENTENCE = "Bright: where the model's reasons change most when noise is taken out of the scan."
WARNING = "A security finding, not a diagnosis."

_STRONGEST = 0.85
"""Opacity of the hottest place, so that the image stays visible under it."""
_MARGIN, _LINE, _BAR = 16, 20, 12
_BACKGROUND, _INK, _FAINT = (17, 17, 20), (235, 235, 235), (160, 160, 165)
# Dark to bright in equal steps of lightness, so that it reads the same in grey and to colour-blind eyes.
_ANCHORS = np.array([(0, 0, 4), (66, 10, 104), (147, 38, 103), (221, 81, 58), (252, 165, 10), (252, 255, 164)])


def overlay(
    image: NDArray[np.float32],
    heat: NDArray[np.float32],
    *,
    aspect: float = 1.0,
    usual: float | None = None,
    note: str = "",
) -> bytes:
    """The image, and the image under the map, side by side over a legend.

    Args:
        image: (1 or 3, rows, columns), 0 to 1, as shown in its window: grey, or red, green and blue.
        heat: (any rows, any columns) over the same field, at least 0 and finite; in its own unit, which the legend's
            upper end is written in.
        aspect: distance between rows over distance between columns.
        usual: how hot the hottest place of a clean scan gets, in the unit of `heat`. The scale then ends at twice that
            or beyond, and bears a mark there, so that a calm map looks calm; without it the scale ends at the map's own
            hottest place, and the legend says so.
        note: one line of facts for the legend; no patient's.

    Returns:
        A PNG file; the panels have the proportions of the body, not of the pixel grid.

    Raises:
        ValueError: an array is empty, of other axes, or not finite.
    """
    for name, values, axes in (("image", image, 3), ("heat", heat, 2)):
        if values.ndim != axes or 0 in values.shape or not np.isfinite(values).all():
            raise ValueError(f"{name} must be a finite array of {axes} axes, not {values.shape}")
    size = _panel(image.shape[1:], aspect)
    channels = [_scaled(np.clip(channel, 0.0, 1.0), size) for channel in image]
    plain = np.stack(channels if len(channels) == 3 else 3 * channels, axis=-1) * 255.0
    scale = _Scale(float(heat.max()), usual or None)
    share = _scaled(np.clip(heat / scale.end, 0.0, 1.0) if scale.end > 0 else heat, size)
    opacity = (_STRONGEST * np.sqrt(np.clip(share, 0.0, 1.0)))[..., None]
    under = (plain * (1 - opacity) + _coloured(share) * opacity).astype(np.float32)
    return _page(plain.astype(np.float32), under, scale, note)


@dataclass(frozen=True, slots=True)
class _Scale:
    """What the ends of the colours mean."""

    peak: float
    usual: float | None

    @property
    def end(self) -> float:
        return self.peak if self.usual is None else max(self.peak, 2 * self.usual)

    @property
    def sentence(self) -> str:
        """How bright the map is among maps."""
        if self.usual is None:
            return "Each map is scaled to its own brightest place: of a calm scan it glows as brightly."
        if self.peak <= self.usual:
            return "No place is brighter than clean scans have (19 of 20 stay left of the mark)."
        times = self.peak / self.usual
        return (
            f"The brightest place is {times:.2g} times as bright as clean scans get (19 of 20 stay left of the mark)."
        )


def _panel(shape: tuple[int, ...], aspect: float) -> tuple[int, int]:
    """(width, height) of a panel."""
    tall, wide = shape[0] * aspect, float(shape[1])
    factor = PANEL_PIXELS / max(tall, wide)
    return max(1, round(wide * factor)), max(1, round(tall * factor))


def _scaled(values: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float32]:
    plane = Image.fromarray(np.ascontiguousarray(values, np.float32))
    return np.asarray(plane.resize(size, Image.Resampling.BILINEAR), np.float32)


def _coloured(share: NDArray[np.float32]) -> NDArray[np.float32]:
    """(rows, columns, 3), 0 to 255."""
    places = np.linspace(0.0, 1.0, len(_ANCHORS))
    channels = [np.interp(share, places, _ANCHORS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


def _page(plain: NDArray[np.float32], under: NDArray[np.float32], scale: _Scale, note: str) -> bytes:
    height, width = plain.shape[:2]
    font = ImageFont.load_default(14)
    across = max(2 * width + 3 * _MARGIN, PANEL_PIXELS)
    said = _wrapped(f"{SENTENCE} {scale.sentence} {WARNING}", font, across - 2 * _MARGIN)
    facts = _wrapped(note, font, across - 2 * _MARGIN) if note else []
    top = 2 * _MARGIN + height
    below = 2 * _LINE + _BAR + _LINE * len(said + facts) + _MARGIN // 2
    page = Image.new("RGB", (across, top + below), _BACKGROUND)
    left = (across - 2 * width - _MARGIN) // 2
    for place, panel in ((left, plain), (left + width + _MARGIN, under)):
        page.paste(Image.fromarray(np.clip(np.rint(panel), 0, 255).astype(np.uint8)), (place, _MARGIN))
    pen = ImageDraw.Draw(page)
    ramp = np.linspace(0.0, 1.0, across - 2 * _MARGIN, dtype=np.float32)[None].repeat(_BAR, axis=0)
    page.paste(Image.fromarray(_coloured(ramp).astype(np.uint8)), (_MARGIN, top))
    pen.text((_MARGIN, top + _BAR + 4), "0", _FAINT, font)
    pen.text((across - _MARGIN, top + _BAR + 4), _number(scale.end), _FAINT, font, anchor="ra")
    if scale.usual is not None:
        mark = _MARGIN + (across - 2 * _MARGIN) * scale.usual / scale.end
        pen.rectangle((mark - 1, top - 4, mark + 1, top + _BAR + 3), _INK)
    middle = "change of the model's score, for each pixel"
    pen.text((across / 2, top + _BAR + 4), middle, _FAINT, font, anchor="ma")
    for index, line in enumerate(said + facts):
        pen.text((_MARGIN, top + _BAR + _LINE * (index + 1) + 8), line, _INK if index < len(said) else _FAINT, font)
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def _number(value: float) -> str:
    return f"{value:.2g}" if value and math.isfinite(value) else "0"


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """The text in lines that fit."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
