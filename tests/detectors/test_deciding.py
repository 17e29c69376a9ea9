"""Twins, shifts, D and their fusion: each fires on what it is for, and falls to what is known to break it.

Figures in comments: AUROC against clean scans of the small sites of conftest.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from detectors import registry
from detectors.neighbours.defaults import default_neighbours, other_neighbours

SHIFTS = tuple(each.name for each in (*default_neighbours(), *other_neighbours()))
LEARNED = ("twinM", "twinS", "gradient_residual", "fusion")

CLAIMED = {"twinM": 0.95, "twinS": 0.6, "gradient_residual": 0.95, "fusion": 0.95}
"""On attacks of four grey levels that follow the model's gradient: 1.0, .71, 1.0, 1.0. The small twin is eight channels
wide here, and was trained for four epochs."""


@pytest.mark.parametrize("name", LEARNED)
def test_it_fires_on_an_attack_that_follows_the_gradient(site: Any, name: str) -> None:
    images = site.attacked(4)
    assert len(images) >= 100
    assert site.auroc(site.fitted(registry.method(name)), images) > CLAIMED[name]


@pytest.mark.parametrize("name", LEARNED)
def test_it_falls_to_an_attack_whose_loss_holds_it(site: Any, name: str) -> None:
    """Tramer 2022, arXiv:2107.11630: at eight levels .50, .37, .25 and .36, and nothing is caught."""
    detector = site.fitted(registry.method(name))
    images = site.evaded(detector, levels=8)
    assert len(images) >= 50
    assert site.auroc(detector, images) < 0.65
    assert site.tpr(detector, images) < 0.1


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_fires_where_the_diagnosis_is_in_broad_shapes(smooth: tuple[Any, nn.Module], name: str) -> None:
    """At three levels: noise2_0 .93, noise6_0 .91, the others .98 to 1.0."""
    site, _ = smooth
    images = site.attacked(3)
    assert len(images) >= 50
    assert site.auroc(site.fitted(registry.method(name)), images) > 0.85


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_falls_to_who_changes_the_image_too(smooth: tuple[Any, nn.Module], name: str) -> None:
    """He et al. 2017, arXiv:1706.04701. At four levels: noise2_0 .70, noise6_0 .55, the others .10 to .40."""
    site, _ = smooth
    detector = site.fitted(registry.method(name))
    images = site.evaded(detector, levels=4, steps=20)
    assert len(images) >= 40
    assert site.auroc(detector, images) < min(0.8, site.auroc(detector, site.attacked(4)) - 0.15)


def test_a_shift_is_silent_where_the_diagnosis_is_in_fine_detail(site: Any) -> None:
    """The median takes the stripes away that clean scans are told by: .17 at three levels, less than nothing."""
    assert site.auroc(site.fitted(registry.method("median3")), site.attacked(3)) < 0.5
