"""One image in many variations raises an alarm; a series, and the same image again and again, do not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gateway.callers.queries import ALARM_COUNT, ANCHORS_MAX, SOURCES_MAX, QueryAlarm, QueryWatch, perceptual_hash
from gateway.case import Image


def anatomy(seed: int, place: float = 0.5, size: int = 128) -> NDArray[np.float32]:
    """(1, 1, size, size) in 0..1: smooth blobs that move as a series passes through them."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0 : 1 : size * 1j, 0 : 1 : size * 1j]
    image = np.zeros((size, size))
    for _ in range(150):
        (cy, cx), depth, width = rng.random(2), rng.random(), rng.uniform(0.02, 0.12)
        image += rng.normal() * np.exp(-((y - cy) ** 2 + (x - cx) ** 2 + 4 * (depth - place) ** 2) / width**2)
    image -= image.min()
    return (image / image.max()).astype(np.float32)[None, None]


def variation(image: NDArray[np.float32], seed: int, levels: float = 4.0) -> NDArray[np.float32]:
    noise = np.random.default_rng([seed, 1]).uniform(-levels / 255, levels / 255, image.shape)
    return np.clip(image + noise, 0, 1).astype(np.float32)


def saw(watch: QueryWatch, pixels: NDArray[np.float32], *, held: bool, source: str = "ct") -> QueryAlarm | None:
    return watch.saw(source, f"{pixels.sum()}", Image(pixels, "m"), held=held)


def test_many_variations_of_a_held_scan_raise_the_alarm() -> None:
    watch, image = QueryWatch(), anatomy(1)
    assert saw(watch, image, held=True) is None
    alarms = [saw(watch, variation(image, number), held=number % 2 == 0) for number in range(ALARM_COUNT)]
    assert alarms[:-1] == [None] * (ALARM_COUNT - 1)
    assert alarms[-1] == QueryAlarm(f"{image.sum()}", ALARM_COUNT)


def test_the_alarm_comes_again_while_the_attack_goes_on() -> None:
    watch, image = QueryWatch(), anatomy(1)
    saw(watch, image, held=True)
    alarms = [saw(watch, variation(image, number), held=False) for number in range(3 * ALARM_COUNT)]
    assert [alarm.count for alarm in alarms if alarm] == [ALARM_COUNT, 2 * ALARM_COUNT, 3 * ALARM_COUNT]


def test_the_same_image_again_and_again_teaches_nobody_anything() -> None:
    watch, image = QueryWatch(), anatomy(1)
    assert [saw(watch, image, held=True) for _ in range(10 * ALARM_COUNT)] == [None] * (10 * ALARM_COUNT)


def test_variations_of_what_was_never_held_are_no_attack() -> None:
    watch, image = QueryWatch(), anatomy(1)
    assert not any(saw(watch, variation(image, number), held=False) for number in range(3 * ALARM_COUNT))


def test_two_sources_are_counted_apart() -> None:
    watch, image = QueryWatch(), anatomy(1)
    saw(watch, image, held=True)
    assert not any(
        saw(watch, variation(image, number), held=True, source=str(number % 8)) for number in range(3 * ALARM_COUNT)
    )


def test_many_patients_that_are_all_held_raise_none() -> None:
    watch = QueryWatch()
    assert not any(saw(watch, anatomy(seed), held=True) for seed in range(300))


def test_memory_is_bounded_by_sources_and_held_scans() -> None:
    watch = QueryWatch()
    for seed in range(ANCHORS_MAX + 20):
        saw(watch, anatomy(seed), held=True)
    for number in range(SOURCES_MAX + 20):
        saw(watch, anatomy(1), held=True, source=str(number))
    assert len(watch._sources) == SOURCES_MAX
    assert max(map(len, watch._sources.values())) <= ANCHORS_MAX


@pytest.mark.parametrize("shape", [(8, 8), (33, 500), (1, 1)])
def test_any_shape_has_a_hash(shape: tuple[int, int]) -> None:
    assert perceptual_hash(np.random.default_rng(0).random(shape)).shape == (32,)
