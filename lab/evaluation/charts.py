"""Charts as SVG text: lines over an axis, and bars with intervals; colours come from the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from lab.evaluation.style import HUES, SHADES

_MARKS = ("circle", "square", "diamond", "triangle")
_DASHES = 4


@dataclass(frozen=True, slots=True)
class Point:
    """One measured rate."""

    x: float
    rate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Look:
    """How one line is told from the others: by colour, by dashes, and by its mark."""

    hue: str
    dash: int = 0
    mark: str = ""
    """Empty where the line has no marks."""
    bold: bool = False

    @classmethod
    def nth(cls, index: int) -> Look:
        """One of many names."""
        dash = (index + index // len(_MARKS)) % _DASHES  # each dash meets each mark before any pair comes again
        return cls(f"k{index % HUES}", dash, _MARKS[index % len(_MARKS)])

    @classmethod
    def shade(cls, index: int, of: int) -> Look:
        """One of an order, such as budgets: the larger, the further from the paper."""
        place = round(index * (SHADES - 1) / max(1, of - 1)) if of > 1 else SHADES // 2
        return cls(f"s{place}", (of - 1 - index) % _DASHES)

    @property
    def classes(self) -> str:
        """Of the group that is drawn."""
        return f"{self.hue} d{self.dash}" + (" bold" if self.bold else "")


@dataclass(frozen=True, slots=True)
class Series:
    """One line: points in the order of x, with whiskers where an interval is known."""

    name: str
    points: Sequence[Point | tuple[float, float]]
    look: Look


@dataclass(frozen=True, slots=True)
class Scale:
    """The horizontal axis."""

    low: float
    high: float
    ticks: Sequence[float]
    words: str
    logarithmic: bool = False
    said: Callable[[float], str] = "{:g}".format

    def share(self, value: float) -> float:
        """The place of a value, 0 to 1; what lies outside is put at the end."""
        inside = min(max(value, self.low), self.high)
        if self.high <= self.low:
            return 0.5
        if self.logarithmic:
            return math.log(inside / self.low) / math.log(self.high / self.low)
        return (inside - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class Size:
    """Of a chart and of what stands around it."""

    width: int
    height: int
    right: int
    left: int = 46
    top: int = 12
    bottom: int = 40


WIDE, SMALL = Size(800, 320, right=170), Size(330, 236, right=20)


def budgets(levels: Sequence[float]) -> Scale:
    """The axis of budgets: one tick each, evenly spaced where they double."""
    low, high = min(levels), max(levels)
    return Scale(low, high, sorted(set(levels)), "budget, 8-bit grey levels of the window", logarithmic=high > low)


def lines(series: Sequence[Series], across: Scale, up: str, size: Size = WIDE, rules: Sequence[float] = ()) -> str:
    """Shares from 0 to 1 over an axis; on a wide chart each line's name stands at its end.

    Args:
        series: each keeps its look, also where another has no points.
        across: the horizontal axis.
        up: what the vertical axis is.
        size: of the chart.
        rules: places on the axis that a thin line marks.
    """
    shown = [each for each in series if each.points]
    if not shown:
        return ""
    pad = 12 if any(each.look.mark for each in shown) else 0

    def x_of(value: float) -> float:
        return size.left + pad + across.share(value) * (size.width - size.left - size.right - 2 * pad)

    parts = [_frame(size)]
    foot = size.height - size.bottom
    parts += [_text(x_of(tick), foot + 17, across.said(tick), "middle") for tick in across.ticks]
    for rule in rules:
        x = x_of(rule)
        parts.append(f'<line class="rule" x1="{x:.1f}" x2="{x:.1f}" y1="{size.top}" y2="{foot}"/>')
    ends = []
    for index, each in enumerate(shown):
        shift = (index - (len(shown) - 1) / 2) * 2.5 if pad else 0.0  # so that intervals do not hide each other
        parts.append(_line(each, [x_of(_xy(point)[0]) + shift for point in each.points], size))
        ends.append((_y(_xy(each.points[-1])[1], size), each.name, each.look.hue))
    if size is WIDE:
        parts += _labels(ends, size)
    parts.append(_text((size.width - size.right + size.left) / 2, size.height - 5, across.words, "middle"))
    kind = "wide" if size is WIDE else "small"
    return _svg(parts, size.width, size.height, f"{up} over {across.words}", kind)


def bars(rates: Mapping[str, Point], limit: float, what: str) -> str:
    """Rates as horizontal bars with their intervals, and the limit as a line.

    Args:
        rates: by name; `x` is not used.
        limit: the promised rate.
        what: is measured.
    """
    if not rates:
        return ""
    left, row, width = 190, 22, WIDE.width
    most = max(0.05, 2 * limit, *(point.high for point in rates.values()))
    scale = (width - left - 70) / most
    parts = []
    for index, (name, point) in enumerate(rates.items()):
        y, low, high = 10 + row * index, left + point.low * scale, left + point.high * scale
        parts.append(_text(left - 8, y + 12, name, "end"))
        bar = max(point.rate * scale, 1)
        parts.append(f'<rect class="bar" x="{left}" y="{y}" width="{bar:.1f}" height="14" rx="2"/>')
        parts.append(f'<line class="error" x1="{low:.1f}" x2="{high:.1f}" y1="{y + 7}" y2="{y + 7}"/>')
        parts.append(_text(high + 6, y + 12, f"{point.rate:.1%}", "start"))
    x, bottom = left + limit * scale, 10 + row * len(rates)
    parts.append(f'<line class="limit" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{bottom}"/>')
    parts.append(_text(x, bottom + 16, f"promised {limit:.1%}", "middle"))
    return _svg(parts, width, bottom + 26, what, "wide")


def legend(looks: Mapping[str, Look]) -> str:
    """The names of lines, each beside a piece of its line."""
    items = []
    for name, look in looks.items():
        mark = _mark(look.mark, 17, 7) if look.mark else ""
        piece = f'<g class="{look.classes}"><path class="line" d="M0 7H34"/>{mark}</g>'
        items.append(f'<li><svg viewBox="0 0 34 14" aria-hidden="true">{piece}</svg>{escape(name)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _xy(point: Point | tuple[float, float]) -> tuple[float, float]:
    return (point.x, point.rate) if isinstance(point, Point) else point


def _y(rate: float, size: Size) -> float:
    return size.top + (1 - rate) * (size.height - size.top - size.bottom)


def _line(series: Series, xs: Sequence[float], size: Size) -> str:
    """One line with its marks and whiskers."""
    places = [(x, _y(_xy(point)[1], size)) for x, point in zip(xs, series.points, strict=True)]
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline class="line" points="{drawn}"/>']
    for (x, y), point in zip(places, series.points, strict=True):
        if isinstance(point, Point):
            low, high = _y(point.low, size), _y(point.high, size)
            parts.insert(0, f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        if series.look.mark:
            parts.append(_mark(series.look.mark, x, y))
    return f'<g class="{series.look.classes}"><title>{escape(series.name)}</title>{"".join(parts)}</g>'


def _frame(size: Size) -> str:
    """Horizontal lines at each fifth, and the axis."""
    parts, end = [], size.width - size.right
    for fifth in range(6):
        y, kind = _y(fifth / 5, size), "grid" if fifth else "axis"
        parts.append(f'<line class="{kind}" x1="{size.left}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(size.left - 6, y + 4, f"{20 * fifth} %", "end"))
    return "".join(parts)


def _labels(ends: list[tuple[float, str, str]], size: Size) -> list[str]:
    """Names at the ends of their lines, moved apart where they would touch."""
    placed, y = [], -math.inf
    for wanted, name, hue in sorted(ends):
        y = max(wanted + 4, y + 15)
        placed.append((y, name, hue))
    over = max(0.0, placed[-1][0] - (size.height - 6))
    x = size.width - size.right + 8
    return [_text(x, y - over, name, "start", f"name {hue}") for y, name, hue in placed]


def _mark(kind: str, x: float, y: float) -> str:
    if kind == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    shapes = {
        "square": ((-3.6, -3.6), (3.6, -3.6), (3.6, 3.6), (-3.6, 3.6)),
        "diamond": ((0, -5), (5, 0), (0, 5), (-5, 0)),
        "triangle": ((0, -4.8), (4.6, 3.7), (-4.6, 3.7)),
    }
    corners = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in shapes[kind])
    return f'<polygon class="mark" points="{corners}"/>'


def _text(x: float, y: float, words: str, anchor: str, kind: str = "") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text{chosen} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _svg(parts: list[str], width: float, height: float, title: str, kind: str) -> str:
    said = escape(title, quote=True)
    body = "".join(parts)
    return f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{said}">{body}</svg>'
