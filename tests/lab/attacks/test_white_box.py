"""Attacks that know the model find what there is to find, at the point that is stored."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lab import attacks
from lab.attacks.attack import Target
from lab.attacks.boundary import bisected, onto_plane
from lab.attacks.method import checkpoints
from lab.attacks.pgd import PGD
from lab.attacks.scene import Scene, rising, rounded_within
from lab.attacks.tasks import Multilabel, Segmentation
from lab.attacks.universal import UniversalPerturbation, add


class Linear(nn.Module):
    """Two classes told apart by a plane, so that every optimum is known."""

    def __init__(self, weights: Tensor, bias: float) -> None:
        super().__init__()
        self.weights, self.bias = weights, bias

    def forward(self, x: Tensor) -> Tensor:
        lead = (x * self.weights).flatten(1).sum(dim=1) + self.bias
        return torch.stack([-lead, lead], dim=1)


def plane(distance: float, *, levels: int = 255, seed: int = 0) -> tuple[Target, Tensor, Tensor, Tensor]:
    """A target of two classes, one grey image at a Euclidean distance from the boundary, its label, the unit normal."""
    draws = torch.Generator().manual_seed(seed)
    weights = torch.randn(1, 1, 16, 16, generator=draws)
    weights /= weights.norm()
    image = torch.full((1, 1, 16, 16), float(levels // 2))
    bias = -float((image / levels * weights).sum()) - distance
    target = Target(Linear(weights, bias), lambda x: x / levels, levels / 255, 0.0, float(levels))
    return target, image, torch.tensor([0]), weights


def rms_levels(target: Target, change: Tensor) -> float:
    return float((change / target.level).square().mean().sqrt())


@pytest.mark.parametrize(
    ("name", "options", "slack"),
    [("deepfool", {}, 1.03), ("fab", {"norm": "l2"}, 1.03), ("cw", {"steps": 200, "searches": 6}, 1.1)],
)
def test_the_nearest_point_across_a_plane_is_found(name: str, options: dict[str, Any], slack: float) -> None:
    """16 bits: rounding does not matter, and the answer is the distance to the plane."""
    target, image, label, _ = plane(0.5, levels=65535)
    found = attacks.named(name, **options)(target, image, label)
    nearest = 0.5 / 16 * 255

    assert bool(found.success)
    assert nearest <= rms_levels(target, found.images - image) <= slack * nearest


@pytest.mark.parametrize("name", ["deepfool", "fab"])
def test_the_least_largest_change_is_found(name: str) -> None:
    target, image, label, weights = plane(0.5, levels=65535)
    found = attacks.named(name, norm="linf")(target, image, label)
    least = 0.5 / float(weights.abs().sum()) * 255

    assert least <= float(((found.images - image) / target.level).abs().max()) <= 1.06 * least


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_reach_the_far_side_of_the_ball(norm: str) -> None:
    target, image, label, weights = plane(100.0, levels=65535)
    found = PGD(eps=2.0, steps=30, norm=norm)(target, image, label)  # type: ignore[arg-type]
    farthest = 2 / 255 * (weights.abs().sum() if norm == "linf" else torch.tensor(16.0))

    assert float(found.margin) == pytest.approx(2 * (100.0 - float(farthest)), abs=1e-2)


@pytest.mark.parametrize(
    "name",
    [
        "pgd",
        "apgd",
        "fab",
        "square",
        "autoattack",
        "low-frequency-pgd",
        "momentum-pgd",
        "bias-field",
        "adversarial-speckle",
    ],
)
def test_a_trained_model_is_misled(name: str, figures: Any) -> None:
    options = {"square": {"queries": 300}, "autoattack": {"queries": 50, "steps": 30}}.get(name, {})
    budget = {} if name in {"bias-field", "adversarial-speckle"} else {"eps": 4.0}
    found = attacks.named(name, **budget, **options)(figures.target, figures.images, figures.labels)

    assert float(found.success.float().mean()) > 0.5


def test_the_union_finds_what_any_member_finds(figures: Any) -> None:
    images, labels = figures.images[:16], figures.labels[:16]
    union = attacks.named("autoattack", eps=1.0, steps=20, queries=60)
    whole = union(figures.target, images, labels).success
    for member in union.members:  # type: ignore[attr-defined]
        assert not bool((member(figures.target, images, labels).success & ~whole).any()), member


def test_noise_of_the_same_size_misleads_less(figures: Any) -> None:
    """Else the model would be broken, not the attack good."""
    found = PGD(eps=4.0)(figures.target, figures.images, figures.labels)
    draws = torch.Generator().manual_seed(0)
    signs = 2 * torch.randint(2, figures.images.shape, generator=draws).float() - 1
    noisy = figures.target.judged((figures.images + 4 * signs).clamp(0, 255), figures.labels, batch=64)

    assert float(noisy.success.float().mean()) < 0.2 < float(found.success.float().mean())


def test_a_large_budget_misleads_always(figures: Any) -> None:
    found = PGD(eps=64.0, steps=30)(figures.target, figures.images, figures.labels)

    assert bool(found.success.all())


def test_more_steps_and_larger_budgets_never_help_the_defender(figures: Any) -> None:
    rates = [
        float(PGD(eps=eps, steps=steps)(figures.target, figures.images, figures.labels).success.float().mean())
        for eps, steps in [(1.0, 5), (2.0, 5), (2.0, 40), (4.0, 40), (8.0, 40)]
    ]

    assert rates == sorted(rates)


def test_images_that_are_done_leave_the_batch(figures: Any) -> None:
    """The same images fall, with fewer passes through the model."""
    asked = []

    def counting(x: Tensor) -> Tensor:
        asked.append(len(x))
        logits: Tensor = figures.network(x)
        return logits

    target = replace(figures.target, model=counting)
    passes = []
    for confidence in (math.inf, 0.0):
        asked.clear()
        found = PGD(eps=4.0, confidence=confidence)(target, figures.images, figures.labels)
        passes.append((sum(asked), int(found.success.sum())))

    assert passes[0][1] == passes[1][1]
    assert passes[1][0] < 0.7 * passes[0][0]


def test_a_goal_is_the_only_success(figures: Any) -> None:
    found = PGD(eps=12.0, steps=30, goal=2)(figures.target, figures.images, figures.labels)
    answers = figures.target.logits(found.images).argmax(dim=1)

    assert torch.equal(found.success, answers == 2)
    assert bool((found.success & (figures.labels != 2)).any())


def test_findings_and_outlines_are_attacked_as_such(findings: Any, outlines: Any) -> None:
    for loss in ("margin", "ce"):
        attack = PGD(eps=8.0, loss=loss)  # type: ignore[arg-type]
        found = attack(findings.target, findings.images, findings.labels)
        assert float(found.success.float().mean()) > 0.8
        masks = attack(outlines.target, outlines.images[:12], outlines.labels[:12])
        clean = outlines.target.judged(outlines.images[:12], outlines.labels[:12], batch=12)
        assert float(masks.margin.mean()) < float(clean.margin.mean()) - 0.2


def test_a_surrogate_misleads_less_than_the_model_itself(figures: Any, other_figures: Any) -> None:
    own = PGD(eps=4.0)
    carried = attacks.named("transfer", attack=own, surrogate=other_figures.network, origin="another start")
    there = carried(figures.target, figures.images, figures.labels).success.float().mean()
    here = own(figures.target, figures.images, figures.labels).success.float().mean()

    assert 0.1 < float(there) < float(here) + 1e-6


def test_one_change_misleads_images_that_it_was_not_made_on(figures: Any) -> None:
    attack = UniversalPerturbation(eps=6.0)
    half = len(figures.images) // 2
    change = attack.crafted(figures.target, figures.images[:half], figures.labels[:half])
    found = add(figures.target, change, figures.images[half:], figures.labels[half:], batch=32)

    assert 0 < float(change.abs().max()) <= 6
    assert float(found.success.float().mean()) > 0.3


def test_random_speckle_is_harmless_where_the_adversarial_one_is_not(figures: Any) -> None:
    rates = [
        float(attacks.named(name, strength=0.04)(figures.target, figures.images, figures.labels).success.float().mean())
        for name in ("speckle", "adversarial-speckle")
    ]

    assert (rates[0] < 0.1, rates[1] > 0.5) == (True, True)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_way_onto_a_plane_is_the_shortest_inside_the_range(norm: Any) -> None:
    """Against a fine search over the multiplier, with values at the very ends of the range."""
    draws = torch.Generator().manual_seed(3)
    x = torch.rand(4, 1, 5, 5, generator=draws)
    x[:, :, 0], x[:, :, 1] = 0.0, 1.0
    normal = torch.randn(x.shape, generator=draws)
    rise = torch.tensor([0.5, -0.5, 3.0, 0.0])
    change = onto_plane(x, normal, rise, high=1.0, norm=norm)

    assert torch.allclose((normal * change).sum(dim=(1, 2, 3)), rise, atol=1e-4)
    assert float((x + change).min()) >= 0
    assert float((x + change).max()) <= 1
    for k in range(3):
        travel = torch.linspace(0, 20, 200001)
        slope = (normal[k] * rise[k].sign()).flatten()
        room = torch.where(slope > 0, 1 - x[k].flatten(), x[k].flatten())
        pace = torch.ones_like(slope) if norm == "linf" else slope.abs()
        reached = sum(float(s.abs()) * torch.minimum(travel * p, r) for s, p, r in zip(slope, pace, room, strict=True))
        first = travel[torch.searchsorted(reached, float(rise[k].abs()))]
        expected = torch.minimum(first * pace, room)
        assert torch.allclose(change[k].flatten().abs(), expected, atol=2e-3)


def test_bisection_stops_just_behind_the_boundary() -> None:
    target, image, label, weights = plane(0.5, levels=65535)
    scene = Scene.of(target, image, label, eps=math.inf, norm="l2")
    point = bisected(scene, scene.clean + weights, 12)

    assert float((point - scene.clean).norm()) == pytest.approx(0.5, abs=1e-3)
    assert float(scene.margin(point)) < 0


@pytest.mark.parametrize("radius", [0.4, 1.0, 3.0, 7.7])
def test_rounding_never_lengthens_and_wastes_little(radius: float) -> None:
    draws = torch.Generator().manual_seed(0)
    change = torch.randn(8, 1, 10, 10, generator=draws)
    change *= radius / change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    rounded = rounded_within(change, change.round(), radius)
    lengths = rounded.flatten(1).norm(dim=1)

    assert torch.equal(rounded, rounded.round())
    assert bool((lengths <= radius + 1e-6).all())
    assert bool((lengths >= min(radius, change.round().flatten(1).norm(dim=1).min()) - 1).all())
    assert bool(((rounded - change).abs() < 1).all())


@pytest.mark.parametrize("loss", ["margin", "ce", "dlr"])
@pytest.mark.parametrize("goal", [None, 1])
def test_what_is_climbed_has_the_gradient_that_differences_show(loss: Any, goal: int | None) -> None:
    draws = torch.Generator().manual_seed(1)
    logits = torch.randn(3, 5, generator=draws, dtype=torch.float64).requires_grad_(True)
    labels = torch.tensor([0, 2, 4])
    target = Target(lambda x: x, lambda x: x, 1.0, 0.0, 255.0)
    scene = Scene.of(target, torch.zeros(3, 1, 2, 2), labels, eps=1.0, norm="linf")
    if goal is not None:
        scene = replace(scene, goals=torch.full((3,), goal))

    assert torch.autograd.gradcheck(lambda each: rising(scene, loss, each), logits)


def test_the_gradient_of_a_scene_is_that_of_the_model(figures: Any) -> None:
    """By central differences of values stored in 24 bits, through rounding, view and network: few borders of ReLUs lie
    within such a step."""
    fine = replace(figures.target, view=lambda x: x / 16777215, level=65793.0, high=16777215.0)
    images = figures.images[:4] * 65793
    scene = Scene.of(fine, images, figures.labels[:4], eps=8.0, norm="linf")
    gradient, value, margin = scene.gradient(scene.clean, "margin")
    draws = torch.Generator().manual_seed(0)
    way = torch.randn(scene.clean.shape, generator=draws)
    step = 3e-5
    ahead, behind = (scene.margin(scene.clean + sign * step * way) for sign in (1, -1))

    assert torch.allclose((gradient * way).sum(dim=(1, 2, 3)), (behind - ahead) / (2 * step), rtol=0.05, atol=2.0)
    assert torch.equal(value, -margin)


def test_the_ratio_of_logits_is_blind_to_their_scale() -> None:
    target = Target(lambda x: x, lambda x: x, 1.0, 0.0, 255.0)
    scene = Scene.of(target, torch.zeros(2, 1, 2, 2), torch.tensor([0, 1]), eps=1.0, norm="linf")
    logits = torch.tensor([[3.0, 1.0, 2.0, 0.5], [0.0, 4.0, 5.0, 1.0]])

    assert torch.allclose(rising(scene, "dlr", logits), rising(scene, "dlr", 1000 * logits))
    assert rising(scene, "dlr", logits).tolist() == pytest.approx([-1 / 2, 1 / 4])


def test_tasks_are_judged_as_they_should_be() -> None:
    findings = Multilabel()
    logits = torch.tensor([[2.0, -1.0], [2.0, 1.0]])
    assert findings.margin(logits, torch.tensor([[1, 0], [1, 0]])).tolist() == [1.0, -1.0]

    masks = torch.tensor([[[0, 1], [1, 1]]])
    wrong = torch.tensor([[[0, 1], [0, 0]]])
    full = torch.stack([1.0 - wrong, wrong.float()], dim=1)
    assert float(Segmentation().margin(full, masks)) == pytest.approx(0.0)
    assert float(Segmentation().margin(wrong[:, None] - 0.5, masks)) == pytest.approx(0.0)
    nothing = torch.zeros_like(masks)
    assert float(Segmentation().margin(nothing[:, None] - 0.5, nothing)) == pytest.approx(0.5)


@pytest.mark.parametrize("labels", [torch.tensor([[0, 2]]), torch.tensor([[0, 1], [1, 0]])])
def test_labels_that_are_no_findings_are_refused(labels: Tensor, findings: Any) -> None:
    with pytest.raises(ValueError, match="labels"):
        PGD(eps=1.0)(findings.target, findings.images[:1], labels)


def test_step_sizes_are_reconsidered_ever_sooner() -> None:
    due = list(checkpoints(100))

    assert due[:4] == [22, 41, 57, 70]
    assert due == sorted(set(due))
    assert due[-1] <= 100
