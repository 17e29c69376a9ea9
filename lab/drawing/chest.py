"""The chest wall and the mediastinum: everything of the slice that is not lung."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lab.drawing.canvas import (
    Canvas,
    Field,
    cover,
    ellipse_distance,
    enlarged,
    paint,
    smooth_field,
    superellipse_distance,
    union,
)

FAT_HU, MUSCLE_HU = -105.0, 52.0


@dataclass(frozen=True, slots=True)
class Build:
    """The numbers that make one patient, and where in the chest the slice lies."""

    level: float
    """0 at the aortic arch, 1 at the domes of the diaphragm."""
    cavity_a: float
    """Half width of the thoracic cavity, mm."""
    cavity_b: float
    """Half depth of the thoracic cavity, mm."""
    squareness: float
    """Power of the superellipse that the cavity follows."""
    fat_mm: float
    """Subcutaneous fat at the side."""
    muscle_mm: float
    """Chest wall from pleura to fat, at the side."""
    breast_mm: float
    """How far the breasts bulge; 0 for none."""
    blood_hu: float
    """Blood in arteries and heart; above 60 the patient was given contrast."""
    heart: float
    """Size of the heart, 1 is usual."""
    calcium: float
    """Hardness of cortical bone, 1 is usual."""

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Build:
        """Draw a patient."""
        cavity_a = float(rng.uniform(112, 145))
        contrast = rng.random() < 0.45
        return cls(
            level=float(rng.uniform(0, 1)),
            cavity_a=cavity_a,
            cavity_b=cavity_a * float(rng.uniform(0.66, 0.82)),
            squareness=float(rng.uniform(2.1, 2.6)),
            fat_mm=float(rng.gamma(3.0, 4.0) + 4),
            muscle_mm=float(rng.uniform(14, 24)),
            breast_mm=float(rng.uniform(12, 38)) if rng.random() < 0.4 else 0.0,
            blood_hu=float(rng.uniform(120, 290)) if contrast else float(rng.uniform(34, 52)),
            heart=float(rng.normal(1.0, 0.09)),
            calcium=float(rng.normal(1.0, 0.12)),
        )

    @property
    def spine_y(self) -> float:
        """Patient y of the middle of the vertebral body, mm."""
        return self.cavity_b - 24.0


@dataclass(frozen=True, slots=True)
class Regions:
    """Signed distances (mm, negative inside) that later drawing needs."""

    cavity: Field
    """Inside of the ribs."""
    mediastinum: Field
    """Everything between the lungs."""


def draw_chest(canvas: Canvas, rng: np.random.Generator, build: Build) -> Regions:
    """Paint table, chest wall, bones and mediastinum; the lungs are left as soft tissue."""
    cavity = superellipse_distance(
        *canvas.every_second(), (0.0, 0.0), (build.cavity_a, build.cavity_b), build.squareness
    )
    back = _draw_wall(canvas, rng, build, cavity)
    cavity = enlarged(cavity)
    _draw_table(canvas, rng, back)
    _draw_ribs(canvas, rng, build, cavity)
    mediastinum = _mediastinum_distance(canvas, rng, build)
    paint(canvas.hu, cover(cavity, 1.0), FAT_HU + 8 * enlarged(smooth_field(rng, canvas.size // 2, 40)))
    _draw_contents(canvas, rng, build)
    _draw_spine(canvas, rng, build)
    _draw_sternum(canvas, rng, build)
    return Regions(cavity, mediastinum)


def _draw_wall(canvas: Canvas, rng: np.random.Generator, build: Build, cavity: Field) -> float:
    """Paint skin, fat and muscle, and return the patient y of the back, mm."""
    x, y = canvas.every_second()
    half_size = len(x)
    side = build.muscle_mm + build.fat_mm
    back = build.cavity_b + build.muscle_mm + 14 + 0.5 * build.fat_mm
    front = build.cavity_b + 0.5 * build.muscle_mm + 0.6 * build.fat_mm + 6
    centre, half = (back - front) / 2, (back + front) / 2
    body = superellipse_distance(x, y, (0.0, centre), (build.cavity_a + side, half), build.squareness + 0.15)
    body += 9 * np.exp(-((x / 14) ** 2)) * (y > 0) * min(1.0, build.muscle_mm / 18)  # the furrow over the spine
    if build.breast_mm:
        for sign in (-1.0, 1.0):
            place = sign * 0.55 * build.cavity_a, -front + 16.0
            breast = ellipse_distance(x, y, place, (0.36 * build.cavity_a, 14 + build.breast_mm), sign * 0.3)
            body = union(body, breast, 24.0)
    ripple = smooth_field(rng, half_size, 14)
    body += ripple * np.float32(1.2)
    full = enlarged(body)
    paint(canvas.hu, cover(full, 1.2), 25.0)  # skin
    paint(canvas.hu, cover(full + np.float32(2.0), 1.4), FAT_HU + 5 * enlarged(ripple))
    if build.breast_mm:  # glandular tissue, in strands
        strands = smooth_field(rng, half_size, 60) + smooth_field(rng, half_size, 28)
        gland = cover(body + 11, 6.0) * cover(y + 0.72 * build.cavity_b, 10.0) * np.clip(strands - 0.4, 0, 1)
        paint(canvas.hu, enlarged(gland), 20.0)

    thick = build.muscle_mm * (1 + 0.28 * smooth_field(rng, half_size, 8))
    thick *= 1 - 0.35 * np.exp(-((x / (0.9 * build.cavity_a)) ** 2)) * (y < 0)
    thick += 20 * np.exp(-(((np.abs(x) - 34) / 26) ** 2)) * (y > 0)  # the long muscles beside the spine
    thick += (1 - build.level) * 9 * np.exp(-(((np.abs(x) - 0.62 * build.cavity_a) / 30) ** 2)) * (y < 0)  # pectorals
    muscle = np.maximum(cavity - thick, body + 4.5)
    streaks = np.sin(cavity * np.float32(0.5) + 5 * smooth_field(rng, half_size, 16))
    layers = np.clip(streaks * 1.3 + 1.7 + smooth_field(rng, half_size, 36), 0.0, 1.0)
    paint(canvas.hu, cover(enlarged(muscle), 1.5) * enlarged(0.5 + 0.5 * layers), MUSCLE_HU)
    return centre + half


def _draw_table(canvas: Canvas, rng: np.random.Generator, back: float) -> None:
    """Paint the curved table: two thin shells of carbon fibre around foam, unturned by the patient's pose."""
    rows = np.arange(canvas.size, dtype=np.float32)[:, None]
    columns = np.arange(canvas.size, dtype=np.float32)[None, :] - np.float32(canvas.size / 2)
    top = canvas.pixel_of(0.0, back)[0] + rng.uniform(1, 5) / canvas.spacing_mm
    depth = (rows - np.float32(top)) * np.float32(canvas.spacing_mm)
    across = columns * np.float32(canvas.spacing_mm)
    depth = depth + across * across * np.float32(rng.uniform(0.0006, 0.0014))
    thick = float(rng.uniform(18, 40))
    outside = (np.abs(across) < rng.uniform(195, 225)) & (canvas.hu < AIR_LIMIT_HU)
    foam = cover(np.abs(depth - np.float32(thick / 2)) - np.float32(thick / 2), 1.0) * outside
    paint(canvas.hu, foam, float(rng.uniform(-960, -900)))
    for at in (0.0, thick):
        paint(
            canvas.hu,
            cover(np.abs(depth - np.float32(at)) - np.float32(0.8), 1.0) * outside,
            float(rng.uniform(-420, -150)),
        )


AIR_LIMIT_HU = -600.0


def _draw_ribs(canvas: Canvas, rng: np.random.Generator, build: Build, cavity: Field) -> None:
    """Paint ribs as curved rods that follow the cavity, cut obliquely, and the shoulder blades behind them."""
    bearing = np.arctan2(canvas.x, -canvas.y)  # 0 to the front, positive to the left
    radius = (build.cavity_a + build.cavity_b) / 2 + 6
    for sign in (-1.0, 1.0):
        at = rng.uniform(0.32, 0.5)
        while at < 2.75:
            half_length = float(rng.uniform(8, 26) * (0.7 if at < 0.8 else 1.0))
            depth = float(rng.uniform(4.2, 6.0))
            tilt = float(rng.normal(0, 0.05))
            along = (bearing - np.float32(sign * at)) * np.float32(radius)
            part = _near(canvas, build, sign * at, half_length + 14)
            rod_along, rod_cavity = along[part], cavity[part]
            lying = np.abs(rod_cavity - depth - tilt * rod_along)
            taper = np.sqrt(np.clip(1 - (rod_along / half_length) ** 2, 0.0, 1.0))
            thick = np.float32(rng.uniform(2.8, 4.4))
            _bone(canvas, part, lying - thick * taper + (taper <= 0) * 3, build.calcium, rng)
            at += (2 * half_length + float(rng.uniform(7, 24))) / radius
        if build.level < 0.62:
            size = (1 - build.level) * float(rng.uniform(0.8, 1.2))
            blade_at = sign * float(rng.uniform(2.0, 2.25))
            along = (bearing - np.float32(blade_at)) * np.float32(radius + 14)
            part = _near(canvas, build, blade_at, 70)
            lying = np.abs(cavity[part] - 17 - 0.05 * along[part] * sign)
            flat = np.sqrt(np.clip(1 - (along[part] / (46 * size + 8)) ** 2, 0.0, 1.0))
            waist = np.float32(1.3) + np.float32(2.4) * (np.abs(along[part]) / (46 * size + 8)) ** 3
            _bone(canvas, part, lying - waist * flat + (flat <= 0) * 3, build.calcium, rng)


def _near(canvas: Canvas, build: Build, bearing: float, reach: float) -> tuple[slice, slice]:
    """Return the window around the point of the cavity's edge at `bearing`."""
    u, v = abs(np.sin(bearing)) / build.cavity_a, abs(np.cos(bearing)) / build.cavity_b
    radius = float((u**build.squareness + v**build.squareness) ** (-1 / build.squareness))
    return canvas.window(radius * float(np.sin(bearing)), -radius * float(np.cos(bearing)), reach)


def _bone(canvas: Canvas, part: tuple[slice, slice], distance: Field, calcium: float, rng: np.random.Generator) -> None:
    """Paint one bone: a hard shell about 1.2 mm thick around marrow with a trabecular texture."""
    grain = rng.standard_normal(distance.shape, dtype=np.float32)
    grain = (grain + np.roll(grain, 1, 0) + np.roll(grain, 1, 1) + np.roll(grain, (1, 1), (0, 1))) * np.float32(0.5)
    paint(canvas.hu[part], cover(distance, 1.1), float(rng.uniform(620, 880)) * calcium)
    paint(canvas.hu[part], cover(distance + np.float32(1.3), 1.6), float(rng.uniform(130, 260)) * calcium + 38 * grain)


def _draw_spine(canvas: Canvas, rng: np.random.Generator, build: Build) -> None:
    """Paint a vertebra: body, arch, processes and the canal with the cord."""
    y0 = build.spine_y
    wide, deep = float(rng.uniform(15, 19)), float(rng.uniform(12.5, 15.5))
    part = canvas.window(0, y0 + 18, 62)
    x, y = canvas.x[part], canvas.y[part]
    body = ellipse_distance(x, y, (0.0, y0), (wide, deep))
    body = np.maximum(body, y - np.float32(y0 + deep * 0.82))
    canal_y = y0 + deep + float(rng.uniform(5.5, 7.5))
    ring = np.abs(ellipse_distance(x, y, (0.0, canal_y), (11.0, 9.5))) - np.float32(2.4)
    arch = union(body, ring, 5.0)
    spinous = ellipse_distance(x, y, (float(rng.normal(0, 1.0)), canal_y + 21), (2.6, float(rng.uniform(12, 18))))
    arch = union(arch, spinous, 5.0)
    for sign in (-1.0, 1.0):
        lean = sign * float(rng.uniform(0.35, 0.7))
        process = ellipse_distance(
            x, y, (sign * 23.0, canal_y + 2 + float(rng.normal(0, 1))), (float(rng.uniform(12, 17)), 4.2), lean
        )
        head = ellipse_distance(x, y, (sign * (wide + 9), y0 + deep * 0.55), (9.0, 4.4), -sign * 0.35)
        arch = union(union(arch, process, 4.0), head, 2.0)
    _bone(canvas, part, np.asarray(arch, dtype=np.float32), build.calcium, rng)
    canvas.ellipse(0.0, canal_y, 8.4, 7.2, -20.0, edge_mm=1.5)
    canvas.ellipse(0.0, canal_y, 5.2, 4.4, 38.0, edge_mm=1.5)


def _draw_sternum(canvas: Canvas, rng: np.random.Generator, build: Build) -> None:
    """Paint the breastbone and, beside it, rib cartilage."""
    y = -build.cavity_b - float(rng.uniform(3, 6))
    part = canvas.window(0, y, 40)
    plate = ellipse_distance(canvas.x[part], canvas.y[part], (0.0, y), (float(rng.uniform(13, 20)), 5.5))
    for sign in (-1.0, 1.0):
        canvas.ellipse(sign * 27, y + 4, float(rng.uniform(9, 14)), 5.0, float(rng.uniform(70, 130)), turn=sign * 0.35)
    _bone(canvas, part, plate, build.calcium * 0.8, rng)


def _mediastinum_distance(canvas: Canvas, rng: np.random.Generator, build: Build) -> Field:
    """Return the signed distance to all that lies between the lungs."""
    (x, y), t, b = canvas.every_second(), build.level, build.cavity_b
    spine = ellipse_distance(x, y, (0.0, build.spine_y + 3), (25.0 + float(rng.normal(0, 1.5)), 23.0))
    behind = ellipse_distance(x, y, (0.0, b + 12), (30.0, 34.0))
    core_half = 17 + 9 * (1 - t) + float(rng.normal(0, 3))
    core = ellipse_distance(x, y, (float(rng.normal(2, 3)), 0.0), (core_half, b * 0.95))
    front = ellipse_distance(x, y, (float(rng.normal(0, 4)), -b), (float(rng.uniform(8, 26)), 0.35 * b))
    region = union(union(spine, behind, 8.0), union(core, front, 12.0), 12.0)
    if t > 0.3:
        grown = min(1.0, (t - 0.3) / 0.4)
        long, wide = (34 + 26 * grown) * build.heart, (30 + 15 * grown) * build.heart
        heart = ellipse_distance(x, y, (6 + 17 * grown, -b * 0.62 + wide * 0.72), (long, wide), 0.5)
        region = union(region, heart, 14.0)
    else:
        arch = ellipse_distance(x, y, (9.0, -4.0), (36.0, 17.0), 0.7)
        region = union(region, arch, 10.0)
    aorta = ellipse_distance(x, y, aorta_place(build), (16.0, 16.0))
    region = union(region, aorta, 5.0)
    if 0.15 < t < 0.8:
        size = 1 - abs(t - 0.45) / 0.5
        for sign in (-1.0, 1.0):
            place = sign * (core_half + 4), float(rng.normal(4, 4))
            hilum = ellipse_distance(x, y, place, (14 * size + 6, 9 * size + 4), sign * float(rng.uniform(0.1, 0.7)))
            region = union(region, hilum, 16.0)
    if t > 0.78:  # the dome of the liver
        region = union(region, ellipse_distance(x, y, *_dome(build)), 10.0)
    return enlarged(region + smooth_field(rng, len(x), 22) * np.float32(1.1))


def _dome(build: Build) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the place and half axes of the dome of the liver, mm; it grows with the level."""
    size = (build.level - 0.78) / 0.22
    place = -(0.42 + 0.1 * size) * build.cavity_a, -0.12 * build.cavity_b
    return place, ((0.2 + 0.3 * size) * build.cavity_a, (0.2 + 0.38 * size) * build.cavity_b)


def aorta_place(build: Build) -> tuple[float, float]:
    """Return the middle of the descending aorta, x and y in mm."""
    return 23.0, build.spine_y - 14.0


def _draw_contents(canvas: Canvas, rng: np.random.Generator, build: Build) -> None:
    """Paint heart, great vessels, airways, gullet, lymph nodes and liver into the fat between the lungs."""
    blood = build.blood_hu
    vein = blood * float(rng.uniform(0.55, 1.0)) if blood > 60 else blood
    canvas.ellipse(0.0, build.spine_y + 6, 36, 30, MUSCLE_HU, edge_mm=5.0)
    if build.level > 0.3:
        _draw_heart(canvas, build, vein)
    _draw_vessels(canvas, rng, build, vein)
    _draw_airways(canvas, build)
    canvas.ellipse(6.0, build.spine_y - 22.0, 8.0, 5.5, 38.0, edge_mm=1.5)
    if 0.15 < build.level < 0.8:
        _draw_lung_arteries(canvas, rng, build, vein)
    for _ in range(int(rng.integers(2, 7))):  # lymph nodes
        place = float(rng.normal(0, 16)), float(rng.uniform(-35, 22))
        canvas.ellipse(*place, 3.2, 2.4, 45.0, turn=float(rng.uniform(0, 3)), edge_mm=1.5)
    if build.level > 0.78:
        (x, y), (long, wide) = _dome(build)
        canvas.ellipse(x, y, long + 2, wide + 2, float(rng.uniform(50, 105)), edge_mm=5.0)


def _draw_heart(canvas: Canvas, build: Build, vein: float) -> None:
    """Paint the heart; with contrast its chambers are filled, and muscle lies between them."""
    blood = build.blood_hu
    grown = min(1.0, (build.level - 0.3) / 0.4)
    long, wide = (34 + 26 * grown) * build.heart, (30 + 15 * grown) * build.heart
    x, y = 6 + 17 * grown, -build.cavity_b * 0.62 + wide * 0.72
    canvas.ellipse(x, y, long - 2, wide - 2, 48.0, turn=0.5, edge_mm=3.0)
    if blood > 60:
        canvas.ellipse(x + 14, y + 7, long * 0.5, wide * 0.42, blood, turn=0.55, edge_mm=4.0)
        canvas.ellipse(x - 14, y - 9, long * 0.46, wide * 0.45, vein, turn=0.35, edge_mm=4.0)
        canvas.ellipse(x - 12, y + wide * 0.66, long * 0.42, wide * 0.28, blood, edge_mm=4.0)


def _draw_vessels(canvas: Canvas, rng: np.random.Generator, build: Build, vein: float) -> None:
    """Paint the arch above; below it the ascending aorta, the caval vein, the pulmonary trunk, the descending aorta."""
    t, blood = build.level, build.blood_hu
    if t < 0.25:
        canvas.ellipse(9.0, -4.0, 33.0, 13.0, blood, turn=0.7, edge_mm=1.5)
        canvas.ellipse(-20.0, -14.0, 8.0, 8.5, vein, edge_mm=1.5)
        return
    if t < 0.6:
        wide = float(rng.uniform(13, 17))
        canvas.ellipse(-6.0, -22.0 - 4 * t, wide, wide, blood, edge_mm=1.5)
        canvas.ellipse(-25.0, -16.0, 8.5, 9.5, vein, edge_mm=1.5)
        canvas.ellipse(18.0, -20.0, 13.0, 12.0, vein, turn=0.4, edge_mm=1.5)
        canvas.ellipse(-8.0, -2.0, 24.0, 8.0, vein, turn=0.15, edge_mm=1.5)
    x, y = aorta_place(build)
    canvas.ellipse(x, y, 11.5 + 1.5 * build.heart, 11.5 + 1.5 * build.heart, blood, edge_mm=1.2)
    if build.calcium > 1.08:
        canvas.ellipse(x + 10.5, y + 3, 1.2, 3.0, 620.0, edge_mm=1.2)


def _draw_airways(canvas: Canvas, build: Build) -> None:
    """Paint the windpipe above its fork, the two main airways below it."""
    if build.level < 0.3:
        canvas.ellipse(-4.0, 12.0, 9.8, 10.2, 30.0, edge_mm=1.0)
        canvas.ellipse(-4.0, 12.0, 8.4, 8.8, -985.0, edge_mm=1.2)
    elif build.level < 0.62:
        apart = 10 + 60 * (build.level - 0.3)
        for sign in (-1.0, 1.0):
            canvas.ellipse(sign * apart - 2, 14.0, 8.2, 7.0, 20.0, turn=sign * 0.5, edge_mm=1.0)
            canvas.ellipse(sign * apart - 2, 14.0, 7.0, 5.6, -975.0, turn=sign * 0.5, edge_mm=1.2)


def _draw_lung_arteries(canvas: Canvas, rng: np.random.Generator, build: Build, vein: float) -> None:
    """Paint the arteries that leave for the lungs."""
    size = 1 - abs(build.level - 0.45) / 0.5
    for sign in (-1.0, 1.0):
        for _ in range(2):
            place = sign * float(rng.uniform(16, 32)), float(rng.normal(4, 6))
            turn = sign * float(rng.uniform(0, 1.2))
            canvas.ellipse(*place, 10 * size + 4, 5 * size + 3, vein, turn=turn, edge_mm=2.0)
