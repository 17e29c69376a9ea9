"""Drawn skin: a pink field with hairs and a pigmented spot, whose rim is even or ragged and blueish; 8-bit colour."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CLASSES = ("even", "ragged")
_SKIN, _BROWN, _BLUE = np.array([224, 172, 150]), np.array([110, 66, 44]), np.array([92, 84, 128])


def lesions(count: int, size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draw (count, size, size, 3) images, and tell which rims are ragged."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    down, across = (np.mgrid[:size, :size] + 0.5) / size
    images = np.empty((count, size, size, 3), np.uint8)
    for k, ragged in enumerate(labels):
        row, column, radius, teeth = *rng.uniform(0.38, 0.62, 2), rng.uniform(0.16, 0.26), rng.integers(5, 9)
        angle = np.arctan2(down - row, across - column)
        rim = radius * (1 + ragged * 0.16 * np.sin(teeth * angle + rng.uniform(0, 6.3)))
        inside = 1 / (1 + np.exp((np.hypot(down - row, across - column) - rim) * 60))
        light = 1 + 0.12 * rng.uniform(-1, 1) * (across - 0.5) + 0.12 * rng.uniform(-1, 1) * (down - 0.5)
        pigment = _BROWN + ragged * rng.uniform(0.1, 0.5) * (_BLUE - _BROWN) + rng.normal(0, 6, 3)
        picture = (_SKIN + rng.normal(0, 8, 3)) * light[..., None] * (1 - inside[..., None])
        picture = picture + pigment * light[..., None] * inside[..., None]
        for _ in range(rng.integers(0, 3)):
            distance = np.abs(
                np.cos(turn := rng.uniform(0, 3.1)) * down + np.sin(turn) * across - rng.uniform(0.2, 0.9)
            )
            picture *= 1 - 0.5 * np.clip(1 - distance * size, 0, 1)[..., None]
        images[k] = np.clip(picture + rng.normal(0, 4, picture.shape), 0, 255)
    return images, labels.astype(np.int64)


def write(path: Path, size: int, counts: Mapping[str, int]) -> None:
    """Write a data set of the layout that `scanward-lab fit` reads, of so many images in each split."""
    arrays: dict[str, NDArray[np.generic]] = {"class_names": np.array(CLASSES)}
    for place, (split, count) in enumerate(counts.items()):
        images, labels = lesions(count, size, seed=place)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        arrays |= {f"{split}_groups": np.array([f"{split}{k // 2}" for k in range(count)])}
        arrays |= {f"{split}_ids": np.array([f"{split}-{k}" for k in range(count)])}
    np.savez(path, **arrays)
