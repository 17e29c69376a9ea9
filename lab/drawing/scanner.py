"""The scanner: blur, correlated noise and the 12-bit words that a CT writes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from lab.drawing.canvas import Canvas, Field

RESCALE_INTERCEPT = -1024
STORED_MAX = 4095


@dataclass(frozen=True, slots=True)
class Protocol:
    """How the slice was taken."""

    field_mm: float
    """Diameter of the reconstructed field."""
    thickness_mm: float
    """Slice thickness."""
    kernel: float
    """Cut-off of the reconstruction kernel, line pairs per mm; larger is sharper and noisier."""
    noise_hu: float
    """Standard deviation in the middle of the body."""
    mas: int
    """Exposure, that goes with the noise."""

    @classmethod
    def draw(cls, rng: np.random.Generator, body_mm: float) -> Protocol:
        """Draw a protocol for a patient `body_mm` wide."""
        kernel = float(rng.uniform(0.42, 0.68))
        thickness = float(rng.choice([1.0, 1.25, 1.5, 2.0, 2.5, 3.0]))
        mas = int(rng.integers(25, 240))
        noise = 6.0 * (kernel / 0.5) ** 1.5 * (100 / mas) ** 0.5 * (2.0 / thickness) ** 0.5
        field = body_mm * float(rng.uniform(1.0, 1.12))
        return cls(field, thickness, kernel, float(np.clip(noise, 3.0, 14.0)), mas)


def acquire(canvas: Canvas, rng: np.random.Generator, protocol: Protocol, body_b: float) -> NDArray[np.uint16]:
    """Return (rows, columns) uint16 stored values of what the canvas holds, as the scanner would see it.

    The noise has the spectrum of filtered back-projection (a ramp times the kernel), is stronger in the middle of the
    body, and runs along the longer way through it.
    """
    size = canvas.size
    frequency, across = _frequencies(size)
    lp_mm = frequency * np.float32(1 / canvas.spacing_mm)
    ratio = lp_mm * np.float32(1 / protocol.kernel)
    response = np.exp(-(ratio**2) * np.float32(0.7)) * (1 + np.float32(0.3) * ratio**2)
    sharp = fft.irfft2(fft.rfft2(canvas.hu) * response, s=(size, size))

    power = np.sqrt(lp_mm) * response * (1 + np.float32(0.5) * across)
    power *= np.float32(1 / np.sqrt(np.mean(power**2)))
    grain = fft.irfft2(fft.rfft2(rng.standard_normal((size, size), dtype=np.float32)) * power, s=(size, size))
    depth = np.exp(-((canvas.x / np.float32(1.7 * body_b)) ** 2 + (canvas.y / np.float32(1.2 * body_b)) ** 2))
    hu = sharp + grain * (np.float32(protocol.noise_hu) * (np.float32(0.25) + np.float32(0.75) * depth))

    stored = np.rint(hu) - RESCALE_INTERCEPT
    stored[_outside(size)] = 0  # nothing is reconstructed outside the circle
    return np.asarray(np.clip(stored, 0, STORED_MAX), dtype=np.uint16)


def _frequencies(size: int) -> tuple[Field, Field]:
    """Return, on the half plane of rfft2, the frequency in cycles a pixel and how vertical it is (0..1)."""
    if size not in _GRIDS:
        vertical, horizontal = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
        radius = np.hypot(vertical, horizontal)
        _GRIDS[size] = radius.astype(np.float32), (vertical**2 / np.maximum(radius, 1e-9) ** 2).astype(np.float32)
    return _GRIDS[size]


def _outside(size: int) -> NDArray[np.bool_]:
    if size not in _CIRCLES:
        ticks = np.arange(size) - (size - 1) / 2
        _CIRCLES[size] = ticks[:, None] ** 2 + ticks[None, :] ** 2 > (size / 2) ** 2
    return _CIRCLES[size]


_GRIDS: dict[int, tuple[Field, Field]] = {}
_CIRCLES: dict[int, NDArray[np.bool_]] = {}
