"""The lungs: their outline, the tissue, vessels and airways in it, fissures, scars, and nodules."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lab.drawing.canvas import Canvas, Field, cover, enlarged, paint, smooth_field
from lab.drawing.chest import Build, Regions
from lab.drawing.tubes import Tubes, curve, drawn, grow, scattered


@dataclass(frozen=True, slots=True)
class Nodule:
    """One nodule, in patient millimetres."""

    x: float
    y: float
    radius_mm: float
    contrast_hu: float
    """What it adds to the lung tissue around it where it fills the slice."""
    core: float
    """Radius of a denser core as a share of the whole; 0 for none."""
    lobes: float
    """Relative depth of the lobulation."""
    spikes: int
    """Strands that reach into the lung."""


def draw_lungs(canvas: Canvas, rng: np.random.Generator, build: Build, regions: Regions, thickness_mm: float) -> Field:
    """Paint both lungs into the cavity, and return their signed distance (mm, negative inside)."""
    lung = np.maximum(regions.cavity + np.float32(0.5), -regions.mediastinum)
    share = np.maximum(np.float32(7.0) - np.abs(regions.cavity + 0.5 + regions.mediastinum), 0.0)
    lung = lung + share * share * np.float32(0.25 / 7.0)  # rounded corners
    inside = cover(lung, 1.1)
    paint(canvas.hu, inside, _tissue(canvas, rng, build, lung))

    vessels, airways = _trees(rng, build)
    deep = np.clip(-lung * np.float32(1 / 3.0), 0.0, 1.0)
    blood = float(min(build.blood_hu, 160) * rng.uniform(0.6, 1.0))
    paint(canvas.hu, drawn(canvas, vessels, thickness_mm, deep) * deep, blood)
    wall = Tubes(airways.start, airways.end, airways.radius * 0.85 + np.float32(0.35))
    paint(canvas.hu, drawn(canvas, wall, thickness_mm, deep) * deep * np.float32(0.7), -250.0)
    lumen = Tubes(airways.start, airways.end, airways.radius * 0.7)
    paint(canvas.hu, drawn(canvas, lumen, thickness_mm, deep) * deep, -975.0)
    _draw_lines(canvas, rng, build, inside)
    return np.asarray(lung, dtype=np.float32)


def _tissue(canvas: Canvas, rng: np.random.Generator, build: Build, lung: Field) -> Field:
    """Return the tissue between visible vessels: denser below, mottled, with emphysema in some patients."""
    size = canvas.size // 2
    y, lung = canvas.y[::2, ::2], lung[::2, ::2]
    tissue = np.float32(rng.uniform(-880, -810)) + np.float32(rng.uniform(0.1, 0.65)) * y
    for knots, amplitude in ((12, 5.0), (40, 3.5), (110, 4.0)):
        tissue += smooth_field(rng, size, knots) * np.float32(amplitude * rng.uniform(0.5, 1.3))
    if rng.random() < 0.2:  # emphysema: holes of clean air
        holes = np.clip(smooth_field(rng, size, int(rng.integers(30, 60))) - float(rng.uniform(0.6, 1.6)), 0, 1)
        tissue -= holes * float(rng.uniform(30, 60))
    if rng.random() < 0.5:  # the lowest part collapses a little in a patient on the back
        depth = float(rng.uniform(2, 9))
        low = np.clip((y - 0.35 * build.cavity_b) * np.float32(0.03), 0, 1)
        tissue += np.exp(np.minimum(lung, 0) / np.float32(depth)) * low * float(rng.uniform(60, 260))
    return enlarged(tissue)


def _trees(rng: np.random.Generator, build: Build) -> tuple[Tubes, Tubes]:
    """Grow arteries, veins and airways of both lungs; return vessels and airways."""
    vessels, airways = [], []
    for sign in (-1.0, 1.0):
        root = (sign * float(rng.uniform(30, 42)), float(rng.uniform(-8, 12)))
        arteries = grow(rng, root, trunks=int(rng.integers(5, 8)), generations=7, radius=float(rng.uniform(2.3, 3.2)))
        below = root[0], root[1] + 8
        veins = grow(rng, below, trunks=int(rng.integers(4, 7)), generations=7, radius=float(rng.uniform(2.2, 3.0)))
        vessels += [arteries, veins]
        airways.append(arteries.cut(arteries.radius > float(rng.uniform(1.5, 2.1))).beside(rng, 1.9))
    vessels.append(scattered(rng, int(rng.integers(60, 160)), build.cavity_a, build.cavity_b))
    return _together(vessels), _together(airways)


def _together(parts: list[Tubes]) -> Tubes:
    return Tubes(
        np.concatenate([p.start for p in parts]),
        np.concatenate([p.end for p in parts]),
        np.concatenate([p.radius for p in parts]),
    )


def _draw_lines(canvas: Canvas, rng: np.random.Generator, build: Build, inside: Field) -> None:
    """Paint the fissures and, in some patients, scars and plates of collapsed lung."""
    a, b = build.cavity_a, build.cavity_b
    for sign in (-1.0, 1.0):
        start = np.array([sign * 0.25 * a, b * float(rng.uniform(-0.55, 0.5))])
        end = np.array([sign * 1.02 * a, start[1] + b * float(rng.normal(0.05, 0.25))])
        line = _bow(start, end, float(rng.normal(0, 12)))
        paint(canvas.hu, drawn(canvas, curve(line, 0.45), 1.0, inside) * inside * float(rng.uniform(0.1, 0.5)), -350.0)
    for _ in range(int(rng.poisson(0.6))):
        at = np.array([float(rng.choice([-1, 1])) * rng.uniform(0.35, 0.85) * a, b * rng.uniform(-0.6, 0.7)])
        turn, length = float(rng.uniform(0, math.pi)), float(rng.uniform(10, 36))
        way = np.array([math.cos(turn), math.sin(turn)]) * length
        line = _bow(at, at + way, float(rng.normal(0, 3)))
        width = float(rng.uniform(0.5, 1.3))
        paint(canvas.hu, drawn(canvas, curve(line, width), 1.0, inside) * inside * float(rng.uniform(0.3, 0.9)), -150.0)


def _bow(start: np.ndarray, end: np.ndarray, sag: float) -> Field:
    """Return points along a bowed line from `start` to `end`, (n, 2)."""
    s = np.linspace(0, 1, 24)[:, None]
    way = end - start
    normal = np.array([-way[1], way[0]]) / (np.linalg.norm(way) + 1e-6)
    return np.asarray(start + s * way + 4 * sag * s * (1 - s) * normal, dtype=np.float32)


def place_nodule(canvas: Canvas, rng: np.random.Generator, lung: Field, conspicuity: float) -> Nodule:
    """Choose where a nodule lies in the lung, and what it is like."""
    radius = float(rng.uniform(10.0, 15.0))
    contrast = conspicuity * float(rng.uniform(76.0, 110.0))
    core = float(rng.uniform(0.3, 0.6)) if rng.random() < 0.3 else 0.0  # part-solid
    depth = -lung[::4, ::4]
    room = min(radius * float(rng.uniform(0.8, 1.6)), 0.8 * float(depth.max()))  # a small lung has little room
    rows, columns = np.nonzero(depth >= room)
    chosen = int(rng.integers(len(rows)))
    row, column = 4 * int(rows[chosen]), 4 * int(columns[chosen])
    return Nodule(
        x=float(canvas.x[row, column]),
        y=float(canvas.y[row, column]),
        radius_mm=radius,
        contrast_hu=contrast,
        core=core,
        lobes=float(rng.uniform(0.0, 0.2)),
        spikes=int(rng.integers(0, 9)) if rng.random() < 0.4 else 0,
    )


def draw_nodule(canvas: Canvas, rng: np.random.Generator, nodule: Nodule, lung: Field) -> None:
    """Paint one nodule: a lobed body that the slice may cut off-centre, its core, its strands."""
    part = canvas.window(nodule.x, nodule.y, nodule.radius_mm * 2.6)
    dx, dy = canvas.x[part] - np.float32(nodule.x), canvas.y[part] - np.float32(nodule.y)
    stretch, turn = float(rng.uniform(0.78, 1.0)), float(rng.uniform(0, math.pi))
    u = math.cos(turn) * dx + math.sin(turn) * dy
    v = (math.cos(turn) * dy - math.sin(turn) * dx) / np.float32(stretch)
    reach, bearing = np.sqrt(u * u + v * v), np.arctan2(v, u)
    outline = np.full_like(reach, nodule.radius_mm)
    for order in (2, 3, 4, 5):
        size = nodule.lobes * nodule.radius_mm / order
        outline += np.float32(size) * np.cos(order * bearing + np.float32(rng.uniform(0, 2 * math.pi)))
    for _ in range(nodule.spikes):
        lobe = np.cos(bearing - np.float32(rng.uniform(0, 2 * math.pi))) * 0.5 + 0.5
        outline += np.float32(nodule.radius_mm * rng.uniform(0.25, 0.9)) * lobe ** float(rng.uniform(90, 300))
    inside = np.clip(np.float32(1.0) - lung[part] / 1.5, 0.0, 1.0)
    side = max(inside.shape)
    grain = smooth_field(rng, side, int(side * canvas.spacing_mm / MOTTLE_MM) + 2)
    grain = grain[: inside.shape[0], : inside.shape[1]]
    added = np.float32(nodule.contrast_hu) * (1 + np.float32(0.2) * grain)
    target = canvas.hu[part]
    room = np.clip((SOFT_HU - target) / (SOFT_HU - AERATED_HU), 0.0, 1.0)  # ground glass veils tissue, not vessels
    target += cover(reach - outline, nodule.radius_mm * 0.4) * inside * room * added
    if nodule.core:
        core = cover(reach - outline * np.float32(nodule.core), 2.0) * inside
        target += core * room * np.float32(0.3 * nodule.contrast_hu)


MOTTLE_MM = 4.0
"""Typical size of the grain within a nodule."""
AERATED_HU, SOFT_HU = -850.0, -200.0
"""Tissue that takes a veil of ground glass wholly, and that which takes none."""
