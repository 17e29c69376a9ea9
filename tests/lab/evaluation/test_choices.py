"""Every attack can be chosen by name in an evaluation, says what bounds it, and keeps within that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from lab.attacks.features import clusters_of
from lab.attacks.registry import ATTACKS
from lab.data import DataError, StoredScans
from lab.evaluation.attacks import ALL, planned
from lab.evaluation.choices import CHOICES, LEVELS
from lab.evaluation.grades import Grade
from lab.evaluation.means import Means

TINY = Grade("tiny", images=6, steps=2, restarts=1, queries=64)
OTHERWISE = {"apgd-ce": "apgd", "low-frequency": "low-frequency-pgd"}
"""Names under which an evaluation knows what the registry calls otherwise."""


@pytest.fixture(scope="module")
def means(figures: Any, other_figures: Any) -> Means:
    def inside(x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        seen = {}
        for k, layer in enumerate(figures.network):
            x = layer(x)
            seen[str(k)] = x
        return x, {"2": seen["2"], "4": seen["4"]}

    own = StoredScans(figures.images[20:36], figures.labels[20:36])
    return Means(
        task="multiclass",
        own_model=lambda: other_figures.network,
        own_scans=lambda: own,
        inside=lambda: (inside, "4"),
        clusters=lambda: clusters_of(figures.target, inside, figures.images, figures.labels),
    )


def test_every_attack_of_the_registry_can_be_chosen() -> None:
    reached = {OTHERWISE.get(name, name) for name in CHOICES}

    assert set(ATTACKS) <= reached
    assert set(ALL) <= set(CHOICES)


@pytest.mark.parametrize("name", sorted(set(CHOICES) - {"asma"}))
def test_it_runs_at_a_grade_and_keeps_its_budget(name: str, means: Means, figures: Any) -> None:
    (plan,) = planned([name], [4.0], TINY, 0, means)
    images, labels = figures.images[:6], figures.labels[:6]
    found = plan.attack(figures.target, images, labels)
    change = (found.images - images).flatten(1)

    assert torch.equal(found.images, found.images.round())
    assert plan.budget
    assert (plan.eps is None) == (not CHOICES[name].sized)
    if plan.budget == LEVELS:
        assert float(change.abs().max()) <= 4
    elif plan.eps is not None:
        assert float(change.norm(dim=1).max()) <= 4 * math.sqrt(change.shape[1]) + 1e-3


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_the_tier_is_what_the_attacker_knows(name: str) -> None:
    known = ATTACKS.get(OTHERWISE.get(name, name))
    expected = {
        "scores": {"black-box"},
        "decisions": {"black-box"},
        "none": {"benign"},
        "gradients": {"oblivious"},
        "training": {"oblivious", "transfer"},
    }

    assert known is None or CHOICES[name].tier in expected[known.knowledge]  # type: ignore[attr-defined]


def test_an_attack_for_another_task_is_refused_before_any_work(means: Means) -> None:
    with pytest.raises(DataError, match="asma: not for a model whose task is multiclass"):
        planned(["pgd", "asma"], [2.0], TINY, 0, means)


def test_masks_have_attacks_of_their_own(outlines: Any) -> None:
    def never() -> Any:
        raise AssertionError("nobody asked for it")

    means = Means("segmentation", never, never, never, never)
    (plan,) = planned(["asma"], [2.0], TINY, 0, means)
    found = plan.attack(outlines.target, outlines.images[:4], outlines.labels[:4])

    assert plan.eps is None
    assert found.images.shape == outlines.images[:4].shape
    with pytest.raises(DataError, match="fab: not for a model whose task is segmentation"):
        planned(["fab"], [2.0], TINY, 0, means)
