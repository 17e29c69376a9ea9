"""Vessels, airways and fissures: trees grown in three dimensions, cut by the slice, and drawn as tapered tubes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lab.drawing.canvas import Canvas, Field

PIECE_MM_MAX = 5.0
"""Tubes are cut into pieces no longer than this, so that each fits a small patch."""
PULL_MM = 0.018
"""How strongly, per mm of distance, branches turn back to the slice, so that it is as full as the lung is."""
REACH_MM = 22.0
"""A branch that ends further from the slice than this is not followed: it hardly ever comes back."""

VISIBLE_SHARE = 0.12
"""A tube that fills less of the slice's thickness is below the noise, and is not drawn."""
CHUNKS = 14

Index = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Tubes:
    """Straight tapered pieces in patient millimetres; z is the distance from the middle of the slice."""

    start: Field
    """(n, 3) x, y, z."""
    end: Field
    """(n, 3)."""
    radius: Field
    """(n,) mm, of the middle of the piece."""

    def cut(self, keep: NDArray[np.bool_]) -> Tubes:
        """Return the pieces for which `keep` holds."""
        return Tubes(self.start[keep], self.end[keep], self.radius[keep])

    def beside(self, rng: np.random.Generator, gap: float) -> Tubes:
        """Return the companions of these tubes, each displaced sideways by `gap` radii."""
        along = self.end - self.start
        side = np.stack([-along[:, 1], along[:, 0], 0 * along[:, 0]], axis=1)
        side /= np.linalg.norm(side, axis=1, keepdims=True) + 1e-6
        offset = side * (self.radius * np.float32(gap) * np.float32(rng.choice([-1.0, 1.0])))[:, None]
        return Tubes(self.start + offset, self.end + offset, self.radius)


def grow(rng: np.random.Generator, root: tuple[float, float], *, trunks: int, generations: int, radius: float) -> Tubes:
    """Grow a tree from a hilum: branches fork in two, thin by Murray's law (r^3 splits) and shorten.

    Args:
        rng: the source of every choice.
        root: x, y of the hilum, mm; x says which lung, and the tree fans out away from the midline.
        trunks: how many branches leave the hilum.
        generations: how often they fork.
        radius: of a trunk, mm.
    """
    outward = np.sign(root[0])
    angle = np.linspace(-2.1, 2.1, trunks) + rng.normal(0, 0.22, trunks)
    heading = np.stack([outward * np.cos(angle), np.sin(angle), rng.normal(0, 0.3, trunks)], axis=1)
    heading = _unit(heading.astype(np.float32))
    place = np.array([root[0], root[1], 0.0], np.float32) + heading * rng.uniform(0, 8, (trunks, 1)).astype(np.float32)
    radii = (radius * rng.uniform(0.65, 1.1, trunks)).astype(np.float32)
    starts, ends, widths = [], [], []
    for generation in range(generations):
        length = (rng.uniform(12, 26, len(place)) * 0.94**generation).astype(np.float32)
        for _ in range(3):  # a branch bends as it goes
            bent = heading + rng.normal(0, 0.13, heading.shape).astype(np.float32)
            bent[:, 2] -= place[:, 2] * np.float32(PULL_MM)
            bent = _unit(bent)
            tip = place + bent * (length / 3)[:, None]
            starts.append(place)
            ends.append(tip)
            widths.append(radii)
            place, heading, radii = tip, bent, radii * np.float32(0.975)
        near = np.abs(place[:, 2]) < REACH_MM
        place, heading, radii = _fork(rng, place[near], heading[near], radii[near])
    return _pieces(Tubes(np.concatenate(starts), np.concatenate(ends), np.concatenate(widths)))


def _fork(rng: np.random.Generator, place: Field, heading: Field, radii: Field) -> tuple[Field, Field, Field]:
    """Split each branch in two, the thicker one bending less."""
    share = rng.uniform(0.3, 0.7, len(radii)).astype(np.float32)
    spread = rng.normal(0, 1, heading.shape).astype(np.float32)
    spread = _unit(spread - (spread * heading).sum(axis=1, keepdims=True) * heading)
    opening = rng.uniform(0.7, 1.2, len(radii)).astype(np.float32)
    major = _unit(heading + spread * (opening * (1 - share))[:, None])
    minor = _unit(heading - spread * (opening * share)[:, None])
    return (
        np.concatenate([place, place]),
        np.concatenate([major, minor]),
        np.concatenate([radii * np.cbrt(share), radii * np.cbrt(1 - share)]),
    )


def scattered(rng: np.random.Generator, count: int, a: float, b: float) -> Tubes:
    """Return `count` short thin vessels seen end-on or nearly, spread over an ellipse with half axes `a`, `b`."""
    place = rng.uniform(-1, 1, (count, 3)) * np.array([a, b, 1.0])
    heading = _unit(rng.normal(0, 1, (count, 3)).astype(np.float32)) * rng.uniform(2, 9, (count, 1))
    start, end = (place - heading / 2).astype(np.float32), (place + heading / 2).astype(np.float32)
    return _pieces(Tubes(start, end, rng.gamma(4.0, 0.16, count).astype(np.float32)))


def curve(points: Field, radius: float) -> Tubes:
    """Return a tube along (n, 2) points that lies in the slice."""
    path = np.concatenate([points, np.zeros((len(points), 1), np.float32)], axis=1)
    return _pieces(Tubes(path[:-1], path[1:], np.full(len(path) - 1, radius, np.float32)))


def _unit(vectors: Field) -> Field:
    return np.asarray(vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6), dtype=np.float32)


def _pieces(tubes: Tubes) -> Tubes:
    """Cut every tube into pieces of at most `PIECE_MM_MAX`."""
    length = np.linalg.norm(tubes.end - tubes.start, axis=1)
    count = np.maximum(1, np.ceil(length / PIECE_MM_MAX)).astype(np.int64)
    owner = np.repeat(np.arange(len(count)), count)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    low, high = (step / count[owner])[:, None], ((step + 1) / count[owner])[:, None]
    along = (tubes.end - tubes.start)[owner]
    start = tubes.start[owner]
    return Tubes(
        (start + along * low).astype(np.float32), (start + along * high).astype(np.float32), tubes.radius[owner]
    )


def drawn(canvas: Canvas, tubes: Tubes, thickness_mm: float, within: Field, *, edge_mm: float = 0.9) -> Field:
    """Return (rows, columns) how much of each pixel the tubes fill, as a slice of `thickness_mm` sees them.

    A tube that leaves the slice fades: its share is the part of the slice's thickness that it still fills. Pieces
    whose middle lies where `within` is 0 are left out.
    """
    filled = np.zeros_like(canvas.hu)
    nearest = np.minimum(np.abs(tubes.start[:, 2]), np.abs(tubes.end[:, 2]))
    nearest[tubes.start[:, 2] * tubes.end[:, 2] < 0] = 0.0
    seen = np.minimum(thickness_mm / 2 + tubes.radius - nearest, 2 * tubes.radius)
    tubes = tubes.cut(seen > VISIBLE_SHARE * thickness_mm)
    middle = (tubes.start + tubes.end) * np.float32(0.5)
    row, column = canvas.locate(middle[:, 0], middle[:, 1])
    top, left = row.astype(np.intp), column.astype(np.intp)
    last = canvas.size - 1
    inside = (top >= 0) & (left >= 0) & (top <= last) & (left <= last)
    inside &= within[np.clip(top, 0, last), np.clip(left, 0, last)] > 0
    tubes, top, left = tubes.cut(inside), top[inside], left[inside]

    order = np.argsort(tubes.radius)
    chunk = max(1, len(order) // CHUNKS + 1)  # tubes of like radius share a patch size; small arrays stay in cache
    for first in range(0, len(order), chunk):
        chosen = order[first : first + chunk]
        part = Tubes(tubes.start[chosen], tubes.end[chosen], tubes.radius[chosen])
        _draw_alike(filled, canvas, part, (top[chosen], left[chosen]), thickness_mm=thickness_mm, edge_mm=edge_mm)
    return filled


def _draw_alike(
    filled: Field, canvas: Canvas, tubes: Tubes, centres: tuple[Index, Index], *, thickness_mm: float, edge_mm: float
) -> None:
    """Draw tubes of similar radius in one array operation over (n, patch, patch), on patches with those `centres`."""
    longest = float(np.hypot(*(tubes.end - tubes.start).T[:2]).max())
    reach = (longest / 2 + float(tubes.radius.max()) + edge_mm / 2) / canvas.spacing_mm
    half = int(np.ceil(1.06 * reach)) + 1
    patch = 2 * half + 1
    row, column = centres
    top = np.clip(row - half, 0, canvas.size - patch)
    left = np.clip(column - half, 0, canvas.size - patch)

    steps = np.arange(patch)
    at = ((top[:, None] + steps) * canvas.size)[:, :, None] + (left[:, None] + steps)[:, None, :]
    bx, by, bz = (tubes.end - tubes.start).T[:, :, None, None]
    px = canvas.x.reshape(-1)[at] - tubes.start[:, 0, None, None]  # (n, patch, patch)
    py = canvas.y.reshape(-1)[at] - tubes.start[:, 1, None, None]
    inverse = 1 / (bx * bx + by * by + np.float32(1e-6))
    along = np.clip(px * (bx * inverse) + py * (by * inverse), 0.0, 1.0)
    px -= along * bx
    py -= along * by
    radius = tubes.radius[:, None, None]
    distance = np.sqrt(px * px + py * py)
    share = np.float32(thickness_mm / 2) + radius - np.abs(tubes.start[:, 2, None, None] + along * bz)
    share = np.clip(np.minimum(share, 2 * radius) * np.float32(1 / thickness_mm), 0.0, 1.0)
    coverage = np.clip((np.float32(0.5) + radius / np.float32(edge_mm)) - distance * np.float32(1 / edge_mm), 0.0, 1.0)
    coverage *= share
    for index, (y, x) in enumerate(zip(top.tolist(), left.tolist(), strict=True)):
        target = filled[y : y + patch, x : x + patch]
        np.maximum(target, coverage[index], out=target)
