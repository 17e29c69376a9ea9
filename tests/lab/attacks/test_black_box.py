"""Attacks that see scores or decisions alone, and those that learn, hide, bend and paint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab import attacks
from lab.attacks.asma import overlap
from lab.attacks.attack import TASKS
from lab.attacks.features import clusters_of, pooled
from lab.attacks.generative import GAP
from lab.attacks.hopskipjump import HopSkipJump, portions
from lab.attacks.lesion import discs, painted_over
from lab.attacks.pgd import PGD
from lab.attacks.scene import Scene
from lab.attacks.simulated import simulated


def rate(found: Any) -> float:
    return float(found.success.float().mean())


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("nes", {"steps": 25, "probes": 20}),
        ("zoo", {"steps": 60}),
        ("gradient-simulation", {"steps": 25, "probes": 20}),
        ("hopskipjump", {"norm": "linf", "steps": 10}),
    ],
)
def test_scores_or_decisions_suffice(name: str, options: dict[str, Any], figures: Any) -> None:
    found = attacks.named(name, eps=6.0, **options)(figures.target, figures.images[:16], figures.labels[:16])

    assert rate(found) > 0.5


@pytest.mark.parametrize("name", ["nes", "zoo", "gradient-simulation", "hopskipjump", "square", "lesion-tampering"])
def test_no_gradient_is_ever_asked_for(name: str, figures: Any) -> None:
    def without(x: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        logits: Tensor = figures.network(x)
        return logits

    target = replace(figures.target, model=without)
    short = {"steps": 2, "queries": 4, "probes": 4, "tries": 3, "cells": 4}
    known = type(attacks.named(name, eps=4.0)).__dataclass_fields__  # type: ignore[attr-defined]
    options = {key: value for key, value in short.items() if key in known}
    attacks.named(name, eps=4.0, **options)(target, figures.images[:4], figures.labels[:4])


def test_a_decision_is_all_that_hopskipjump_hears(figures: Any) -> None:
    """With every score made 1 or 0 it finds the same images."""

    def deciding(x: Tensor) -> Tensor:
        return nn.functional.one_hot(figures.network(x).argmax(dim=1), 3).float()

    attack = HopSkipJump(steps=4, probes=20)
    images, labels = figures.images[:6], figures.labels[:6]
    heard = attack(replace(figures.target, model=deciding), images, labels)

    assert torch.equal(heard.images, attack(figures.target, images, labels).images)


def test_decisions_lead_nearly_as_near_as_gradients(figures: Any) -> None:
    images, labels = figures.images[:8], figures.labels[:8]
    near, nearest = (
        (attack(figures.target, images, labels).images - images).flatten(1).norm(dim=1).median()
        for attack in (HopSkipJump(), attacks.named("fab", norm="l2"))
    )

    assert float(near) < 1.3 * float(nearest)


def test_a_simulated_gradient_points_where_the_real_one_does(figures: Any) -> None:
    scene = Scene.of(figures.target, figures.images[:4], figures.labels[:4], eps=4.0, norm="linf")
    real, _, _ = scene.gradient(scene.clean, "margin")
    draws = torch.Generator().manual_seed(0)
    guess = simulated(scene, scene.clean, 400, 2 / 255, draws, batch=64)
    alike = nn.functional.cosine_similarity(real.flatten(1), guess.flatten(1))

    assert float(alike.min()) > 0.4


def test_probes_come_in_portions_that_memory_holds() -> None:
    assert list(portions(10, 8, 4)) == [2, 2, 2, 2, 2]
    assert list(portions(3, 1000, 4)) == [1, 1, 1]
    assert sum(portions(37, 3, 8)) == 37


def test_a_generator_misleads_on_images_that_it_never_saw(figures: Any) -> None:
    attack = GAP(eps=8.0, epochs=40)
    half = len(figures.images) // 2
    seen, unseen = (figures.images[:half], figures.labels[:half]), (figures.images[half:], figures.labels[half:])
    generator = attack.trained(figures.target, *seen)
    found = attack.add(figures.target, generator, *unseen)

    assert rate(found) > 0.4
    assert float((found.images - unseen[0]).abs().max()) <= 8


class Inside:
    """The network of the figures with the features after each ReLU."""

    def __init__(self, network: nn.Sequential) -> None:
        self.network = network

    def __call__(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        seen = {}
        for k, layer in enumerate(self.network):
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                seen[str(k)] = x
        return x, seen


def test_hidden_features_lie_nearer_to_clean_ones(figures: Any) -> None:
    """At the same budget, success kept: what detectors of feature density look at is nearer to clean images."""
    inside = Inside(figures.network)
    clusters = clusters_of(figures.target, inside, figures.images, figures.labels)
    attack = attacks.named("feature-hiding", eps=6.0, features=inside, clusters=clusters)
    hidden, plain = (each(figures.target, figures.images, figures.labels) for each in (attack, PGD(eps=6.0, loss="ce")))

    def far(images: Tensor) -> Tensor:
        logits, seen = inside(figures.target.view(images))
        total = torch.zeros(len(images))
        for name, cluster in clusters.items():
            away = pooled(seen[name])[:, None] - cluster.means[logits.argmax(dim=1)]
            total += (away.square() / cluster.variances[logits.argmax(dim=1)]).mean(dim=2).amin(dim=1)
        return total

    assert rate(hidden) > 0.9
    assert float(far(hidden.images).median()) < 0.7 * float(far(plain.images).median())


def test_clusters_need_every_class(figures: Any) -> None:
    some = figures.labels != 0
    with pytest.raises(ValueError, match="no image of class 0"):
        clusters_of(figures.target, Inside(figures.network), figures.images[some], figures.labels[some])


def test_only_what_is_attended_to_changes(figures: Any) -> None:
    attack = attacks.named("attention", eps=6.0, features=Inside(figures.network), layer="2", share=0.3)
    found = attack(figures.target, figures.images, figures.labels)
    touched = (found.images != figures.images).float().mean(dim=(1, 2, 3))

    assert rate(found) > 0.5
    assert float(touched.max()) <= 0.3


def test_a_model_draws_the_mask_that_is_wanted(outlines: Any) -> None:
    images, labels = outlines.images[:8], outlines.labels[:8]
    found = attacks.named("asma", wanted="empty")(outlines.target, images, labels)
    left = outlines.target.logits(found.images).argmax(dim=1)

    assert rate(found) > 0.8
    assert float((left > 0).float().sum()) < 0.2 * float((labels > 0).float().sum())
    with pytest.raises(ValueError, match="must be segmentation"):
        attacks.named("asma")(
            replace(outlines.target, task=TASKS["multiclass"]), images, torch.zeros(8, dtype=torch.int64)
        )


def test_overlap_counts_the_right_class_alone() -> None:
    goals = torch.tensor([[[1, 1], [0, 2]], [[0, 0], [0, 0]]])
    answers = torch.tensor([[[1, 2], [0, 2]], [[0, 0], [0, 0]]])

    assert overlap(answers, goals).tolist() == pytest.approx([2 / 3, 1.0])


def test_a_deformed_image_is_judged_by_the_deformed_mask(outlines: Any, figures: Any) -> None:
    attack = attacks.named("deformation", steps=8, pixels=1.5)
    masks = attack(outlines.target, outlines.images[:8], outlines.labels[:8])
    clean = outlines.target.judged(outlines.images[:8], outlines.labels[:8], batch=8)

    assert float(masks.margin.mean()) < float(clean.margin.mean())
    assert rate(attack(figures.target, figures.images, figures.labels)) > 0.5


def test_a_lesion_is_painted_over_from_around() -> None:
    """On a slope nothing is left to see; a bright spot is gone."""
    slope = torch.linspace(0.2, 0.6, 40).expand(1, 1, 40, 40).clone()
    draws = torch.Generator().manual_seed(0)
    depth = discs(slope, 0.12, draws)
    spotted = slope + 0.3 * (depth > 0)
    painted = painted_over(spotted, (depth + 0.6).clamp(max=1))

    assert float((painted - slope)[depth > 0].abs().max()) < 0.1
    assert torch.equal(painted[depth + 0.6 <= 0], spotted[depth + 0.6 <= 0])


@pytest.mark.parametrize("wrong", [{"kind": "swap"}, {"radius": 0.001}, {"tries": 0}])
def test_an_impossible_lesion_is_refused(wrong: dict[str, Any], figures: Any) -> None:
    with pytest.raises(ValueError, match=r"must be|too small"):
        attacks.named("lesion-tampering", **wrong)(figures.target, figures.images[:2], figures.labels[:2])
