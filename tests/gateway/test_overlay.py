"""A heat map is drawn in the proportions of the body, bright where it is hot, over a legend."""

from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gateway.pixels.overlay import PANEL_PIXELS, overlay

GREY = np.full((1, 40, 80), 0.5, np.float32)


def drawn(
    image: NDArray[np.float32], heat: NDArray[np.float32], aspect: float = 1.0, usual: float | None = None
) -> NDArray[np.uint8]:
    page = Image.open(io.BytesIO(overlay(image, heat, aspect=aspect, usual=usual)))
    assert page.format == "PNG"
    return np.asarray(page)


def tinted(page: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(rows, columns): which pixels have a colour, above the legend."""
    return np.ptp(page[:-120].astype(int), axis=2) > 40


def test_the_hot_place_is_tinted_and_the_plain_image_beside_it_is_not() -> None:
    heat = np.zeros((16, 16), np.float32)
    heat[4, 12] = 3.0
    rows, columns = np.nonzero(tinted(drawn(GREY, heat)))

    panel = PANEL_PIXELS // 2  # tall: half as many rows as columns
    assert abs(rows.mean() - (16 + panel * 4.5 / 16)) < 6
    assert abs(columns.mean() - (2 * 16 + PANEL_PIXELS + PANEL_PIXELS * 12.5 / 16)) < 6


@pytest.mark.parametrize("aspect", [0.5, 1.0, 3.0])
def test_the_panels_have_the_proportions_of_the_body(aspect: float) -> None:
    white = np.ones((1, 40, 80), np.float32)
    page = drawn(white, np.zeros((8, 8), np.float32), aspect)
    bright = (page[..., :3] == 255).all(axis=2)
    rows, columns = np.nonzero(bright.sum(axis=1) > 20)[0], np.nonzero(bright.sum(axis=0) > 20)[0]
    first = columns[columns < page.shape[1] // 2]

    tall, wide = rows[-1] - rows[0] + 1, first[-1] - first[0] + 1
    assert tall / wide == pytest.approx(aspect * 40 / 80, rel=0.02)
    assert max(tall, wide) == PANEL_PIXELS


def test_a_photograph_keeps_its_colour_beside_the_map() -> None:
    red = np.stack([np.full((40, 80), level, np.float32) for level in (0.9, 0.5, 0.1)])
    page = drawn(red, np.zeros((8, 8), np.float32))
    assert page[60, 60].tolist() == [230, 128, 26]
    with pytest.raises(ValueError, match="image must be a finite array of 3 axes"):
        overlay(red[0], np.zeros((8, 8), np.float32))


def test_without_heat_nothing_is_tinted() -> None:
    assert not tinted(drawn(GREY, np.zeros((16, 16), np.float32))).any()


def test_it_has_a_legend_with_a_scale() -> None:
    page = drawn(GREY, np.ones((16, 16), np.float32))
    legend = page[-110:]
    assert np.ptp(legend.astype(int), axis=2).max() > 100  # the colour scale
    assert (legend.min(axis=2) > 200).sum() > 200  # the sentence


def test_a_calm_map_looks_calm_beside_what_is_usual() -> None:
    """Scaled to itself any map glows; against twice what clean scans show, this one does not."""
    heat = np.zeros((16, 16), np.float32)
    heat[4, 12] = 0.2
    assert tinted(drawn(GREY, heat)).any()
    assert not tinted(drawn(GREY, heat, usual=1.0)).any()
    assert tinted(drawn(GREY, 20 * heat, usual=1.0)).any()


@pytest.mark.parametrize(("peak", "place"), [(1.0, 1 / 2), (4.0, 1 / 4)])
def test_the_scale_bears_a_mark_where_clean_scans_end(peak: float, place: float) -> None:
    page = drawn(GREY, np.full((16, 16), peak, np.float32), usual=1.0)
    above = page[16 + PANEL_PIXELS // 2 + 13]  # the mark rises a little over the colours
    columns = np.nonzero(above.min(axis=1) > 200)[0]
    assert columns.mean() == pytest.approx(16 + (page.shape[1] - 32) * place, abs=2)


@pytest.mark.parametrize("heat", [np.full((4, 4), np.nan, np.float32), np.zeros((0, 4), np.float32), np.zeros(4)])
def test_what_is_no_map_is_refused(heat: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="heat must be a finite array of 2 axes"):
        overlay(GREY, heat)
