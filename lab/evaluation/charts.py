"""Charts as SVG text: lines over budgets, and bars with intervals. Nothing is loaded from anywhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 640, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 150, 16, 40
COLOURS = ("#1b5e8c", "#c1502e", "#3a7d44", "#7b4b94", "#b8860b", "#4a6572", "#a23b72", "#2a9d8f", "#6b705c", "#d1495b")
"""Told apart by people who do not see red or green by the marks and by the name at the end of each line."""
_MARKS = ("circle", "square", "diamond", "triangle")


@dataclass(frozen=True, slots=True)
class Point:
    """One measured rate."""

    x: float
    rate: float
    low: float
    high: float


def lines(series: Mapping[str, Sequence[Point]], across: str, up: str) -> str:
    """Rates from 0 to 1 over budgets, on a logarithmic axis, each with its interval; one line a name.

    Args:
        series: by name, points in the order of their budgets, which are above 0; one without points keeps its colour.
        across: what the horizontal axis is.
        up: what the vertical axis is.
    """
    xs = sorted({point.x for points in series.values() for point in points})
    if not xs:
        return ""
    first, last = math.log(xs[0]), math.log(xs[-1])
    span = (last - first) or 1.0

    def x_of(value: float) -> float:
        share = (math.log(value) - first) / span if last > first else 0.5
        return _LEFT + 12 + share * (WIDTH - _LEFT - _RIGHT - 24)

    parts = [_grid()]
    parts += [_text(x_of(x), HEIGHT - _BOTTOM + 18, f"{x:g}", "middle") for x in xs]
    ends: list[tuple[float, str, str]] = []
    for index, (name, points) in enumerate(series.items()):
        if not points:
            continue
        colour, mark = COLOURS[index % len(COLOURS)], _MARKS[index % len(_MARKS)]
        shift = (index - (len(series) - 1) / 2) * 3  # so that intervals do not hide each other
        places = [(x_of(point.x) + shift, _y(point.rate)) for point in points]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, y), point in zip(places, points, strict=True):
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_y(point.low):.1f}" y2="{_y(point.high):.1f}" '
                f'stroke="{colour}" stroke-opacity="0.45" stroke-width="1.5"/>'
            )
            parts.append(_mark(mark, x, y, colour))
        ends.append((places[-1][1], name, colour))
    parts += _labels(ends)
    parts.append(_text((WIDTH - _RIGHT + _LEFT) / 2, HEIGHT - 4, across, "middle"))
    return _svg(parts, HEIGHT, f"{up} over {across}")


def bars(rates: Mapping[str, Point], limit: float, what: str) -> str:
    """Rates as horizontal bars with their intervals, and the limit as a line.

    Args:
        rates: by name; `x` is not used.
        limit: the promised rate.
        what: is measured.
    """
    if not rates:
        return ""
    left, row = 170, 22
    most = max(0.05, 2 * limit, *(point.high for point in rates.values()))
    scale = (WIDTH - left - 60) / most
    height = row * len(rates) + 34
    parts = []
    for index, (name, point) in enumerate(rates.items()):
        y = 10 + row * index
        parts.append(_text(left - 8, y + 12, name, "end"))
        parts.append(
            f'<rect x="{left}" y="{y}" width="{max(point.rate * scale, 1):.1f}" height="14" fill="{COLOURS[0]}"/>'
        )
        parts.append(
            f'<line x1="{left + point.low * scale:.1f}" x2="{left + point.high * scale:.1f}" y1="{y + 7}" '
            f'y2="{y + 7}" stroke="#222" stroke-width="1.5"/>'
        )
        parts.append(_text(left + point.high * scale + 6, y + 12, f"{point.rate:.1%}", "start"))
    x = left + limit * scale
    bottom = 10 + row * len(rates)
    parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}" stroke="{COLOURS[1]}" stroke-dasharray="4 3"/>')
    parts.append(_text(x, bottom + 16, f"promised {limit:.1%}", "middle"))
    return _svg(parts, height, what)


def _y(rate: float) -> float:
    return _TOP + (1 - rate) * (HEIGHT - _TOP - _BOTTOM)


def _grid() -> str:
    """Horizontal lines at each fifth."""
    parts = []
    for fifth in range(6):
        y = _y(fifth / 5)
        parts.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e3e3e3"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{20 * fifth} %", "end"))
    return "".join(parts)


def _labels(ends: list[tuple[float, str, str]]) -> list[str]:
    """Names at the ends of their lines, moved apart where they would touch."""
    placed, y = [], -math.inf
    for wanted, name, colour in sorted(ends):
        y = max(wanted + 4, y + 14)
        placed.append((y, name, colour))
    over = max(0.0, placed[-1][0] - (HEIGHT - 6))
    return [_text(WIDTH - _RIGHT + 8, y - over, name, "start", colour) for y, name, colour in placed]


def _mark(kind: str, x: float, y: float, colour: str) -> str:
    if kind == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
    shapes = {
        "square": ((-3.2, -3.2), (3.2, -3.2), (3.2, 3.2), (-3.2, 3.2)),
        "diamond": ((0, -4.6), (4.6, 0), (0, 4.6), (-4.6, 0)),
        "triangle": ((0, -4.4), (4.2, 3.4), (-4.2, 3.4)),
    }
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[kind])
    return f'<polygon points="{corners}" fill="{colour}"/>'


def _text(x: float, y: float, words: str, anchor: str, colour: str = "#444") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _svg(parts: list[str], height: float, title: str) -> str:
    said = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{said}">{"".join(parts)}</svg>'
