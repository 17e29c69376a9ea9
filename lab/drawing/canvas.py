"""A slice being painted, in Hounsfield units, addressed in patient millimetres."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]

AIR_HU = -1000.0


@dataclass(slots=True)
class Canvas:
    """The image and, for each of its pixels, where it lies in the patient.

    Axes of the patient: x to the patient's left (right in the image), y to the back (down in the image), both in
    millimetres from the middle of the body. The patient may be turned, shifted and gently warped against the pixel
    grid; every structure is drawn in patient millimetres and so follows.
    """

    spacing_mm: float
    angle: float
    """Rotation of the patient about the long axis, radians."""
    shift_mm: tuple[float, float]
    x: Field
    """(rows, columns) patient x of each pixel's centre, mm."""
    y: Field
    """(rows, columns) patient y of each pixel's centre, mm."""
    hu: Field = field(init=False)
    """(rows, columns) the painting so far, HU."""

    def __post_init__(self) -> None:
        self.hu = np.full(self.x.shape, AIR_HU, np.float32)

    @classmethod
    def blank(cls, rng: np.random.Generator, size: int, spacing_mm: float, warp_mm: float) -> Canvas:
        """Return an air-filled canvas with a random pose and a smooth random warp of about `warp_mm`."""
        angle = float(rng.normal(0.0, 0.035))
        shift = (float(rng.normal(0.0, 7.0)), float(rng.normal(4.0, 8.0)))
        ticks = (np.arange(size, dtype=np.float32) - (size - 1) / 2) * np.float32(spacing_mm)
        columns, rows = ticks[None, :] - np.float32(shift[0]), ticks[:, None] - np.float32(shift[1])
        cosine, sine = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        x = cosine * columns + sine * rows + _warp(rng, size, warp_mm)
        y = cosine * rows - sine * columns + _warp(rng, size, warp_mm)
        return cls(spacing_mm, angle, shift, x, y)

    def every_second(self) -> tuple[Field, Field]:
        """Return patient x and y of every second row and column, for smooth quantities that `enlarged` fills in."""
        return self.x[::2, ::2].copy(), self.y[::2, ::2].copy()

    @property
    def size(self) -> int:
        """Rows, and columns."""
        return len(self.x)

    def locate(self, x_mm: Field, y_mm: Field) -> tuple[Field, Field]:
        """Return rows and columns (fractional, (n,) each) of patient positions, (n,) mm each."""
        rows, columns = self._unwarped(x_mm, y_mm)
        for _ in range(2):  # the warp is gentle: look at what is there, and step by the difference
            row = np.clip(rows, 0, self.size - 1).astype(np.intp)
            column = np.clip(columns, 0, self.size - 1).astype(np.intp)
            at_row, at_column = self._unwarped(self.x[row, column], self.y[row, column])
            goal_row, goal_column = self._unwarped(x_mm, y_mm)
            rows, columns = row + goal_row - at_row, column + goal_column - at_column
        return rows, columns

    def _unwarped(self, x_mm: Field, y_mm: Field) -> tuple[Field, Field]:
        cosine, sine = np.float32(math.cos(self.angle)), np.float32(math.sin(self.angle))
        across = cosine * x_mm - sine * y_mm + np.float32(self.shift_mm[0])
        down = sine * x_mm + cosine * y_mm + np.float32(self.shift_mm[1])
        middle = np.float32((self.size - 1) / 2)
        scale = np.float32(1 / self.spacing_mm)
        return down * scale + middle, across * scale + middle

    def pixel_of(self, x_mm: float, y_mm: float) -> tuple[float, float]:
        """Return (row, column) of one patient position."""
        rows, columns = self.locate(np.array([x_mm], np.float32), np.array([y_mm], np.float32))
        return float(rows[0]), float(columns[0])

    def window(self, x_mm: float, y_mm: float, radius_mm: float) -> tuple[slice, slice]:
        """Return the part of the pixel grid within `radius_mm` of a patient position, cut to the canvas."""
        row, column = self.pixel_of(x_mm, y_mm)
        reach = 1.12 * radius_mm / self.spacing_mm + 2  # the warp stretches a little
        return (
            slice(max(0, int(row - reach)), max(0, min(self.size, int(row + reach) + 1))),
            slice(max(0, int(column - reach)), max(0, min(self.size, int(column + reach) + 1))),
        )

    def ellipse(
        self, x: float, y: float, a: float, b: float, hu: float, *, turn: float = 0.0, edge_mm: float = 0.8
    ) -> None:
        """Paint an ellipse with half axes `a`, `b` (mm) at (x, y), turned by `turn` radians, with a soft edge."""
        part = self.window(x, y, max(a, b) + edge_mm)
        distance = ellipse_distance(self.x[part], self.y[part], (x, y), (a, b), turn)
        paint(self.hu[part], cover(distance, edge_mm), hu)


def _warp(rng: np.random.Generator, size: int, warp_mm: float) -> Field:
    """Return a smooth displacement, mm: broad asymmetry, and finer unevenness."""
    broad, fine = smooth_field(rng, size, 6), smooth_field(rng, size, 12)
    return broad * np.float32(1.6 * warp_mm) + fine * np.float32(0.6 * warp_mm)


def paint(target: Field, coverage: Field, hu: float | Field) -> None:
    """Blend `hu` into `target` in place, `coverage` (0..1) saying how much of each pixel it fills."""
    target += coverage * (hu - target)


def cover(distance: Field, edge_mm: float) -> Field:
    """Return how much of each pixel lies inside a shape, from its signed distance in mm (negative inside)."""
    return np.asarray(np.clip(np.float32(0.5) - distance / np.float32(edge_mm), 0.0, 1.0), dtype=np.float32)


def ellipse_distance(
    x: Field, y: Field, centre: tuple[float, float], semi: tuple[float, float], turn: float = 0.0
) -> Field:
    """Return the signed distance (mm, first order) to an ellipse; negative inside."""
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    cosine, sine = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    u = (cosine * dx + sine * dy) * np.float32(1 / semi[0])
    v = (cosine * dy - sine * dx) * np.float32(1 / semi[1])
    rho = np.sqrt(u * u + v * v)
    return (rho - 1) * np.float32(min(semi) * 0.5 + max(semi) * 0.5)


def superellipse_distance(
    x: Field, y: Field, centre: tuple[float, float], semi: tuple[float, float], power: float
) -> Field:
    """Return the signed distance (mm, first order) to a superellipse; power 2 is an ellipse, more is squarer."""
    u = np.abs(x - np.float32(centre[0])) * np.float32(1 / semi[0])
    v = np.abs(y - np.float32(centre[1])) * np.float32(1 / semi[1])
    rho = (u**power + v**power) ** (1 / power)
    scale = (u * semi[0] + v * semi[1]) / np.maximum(u + v, 1e-6)
    return np.asarray((rho - 1) * scale, dtype=np.float32)


def union(first: Field, second: Field, blend_mm: float) -> Field:
    """Return the signed distance to either shape, their corner filled over `blend_mm` (polynomial smooth minimum)."""
    share = np.maximum(np.float32(blend_mm) - np.abs(first - second), 0.0)
    return np.asarray(np.minimum(first, second) - share * share * np.float32(0.25 / blend_mm), dtype=np.float32)


def enlarged(coarse: Field) -> Field:
    """Return (2n, 2n) from every second row and column, (n, n), the rest by linear interpolation."""
    rows = np.empty((2 * len(coarse), len(coarse)), np.float32)
    rows[::2] = coarse
    rows[1:-1:2] = (coarse[:-1] + coarse[1:]) * np.float32(0.5)
    rows[-1] = 2 * coarse[-1] - rows[-3]
    full = np.empty((len(rows), len(rows)), np.float32)
    full[:, ::2] = rows
    full[:, 1:-1:2] = (rows[:, :-1] + rows[:, 1:]) * np.float32(0.5)
    full[:, -1] = 2 * rows[:, -1] - full[:, -3]
    return full


def smooth_field(rng: np.random.Generator, size: int, knots: int) -> Field:
    """Return (size, size) smooth noise of about unit standard deviation, from a coarse grid of random knots."""
    coarse = rng.standard_normal((knots, knots), dtype=np.float32)
    weights = _spline(size, knots)
    return np.asarray(weights @ coarse @ weights.T, dtype=np.float32)


def _spline(size: int, knots: int) -> Field:
    """Return (size, knots) cosine-bell interpolation weights."""
    if (size, knots) not in _SPLINES:
        place = np.linspace(0.5, knots - 1.5, size, dtype=np.float32)[:, None] - np.arange(knots, dtype=np.float32)
        bell = np.where(np.abs(place) < 1.5, np.cos(place * (np.pi / 3)) ** 2, 0.0)
        _SPLINES[size, knots] = (bell / np.sqrt((bell**2).sum(axis=1, keepdims=True))).astype(np.float32)
    return _SPLINES[size, knots]


_SPLINES: dict[tuple[int, int], Field] = {}
