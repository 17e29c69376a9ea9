"""The sanity checks of adaptive evaluation: an attack that does not fell a planted weak detector measures nothing.

Carlini et al. 2019, arXiv:1902.06705; Tramer et al. 2020, arXiv:2002.08347; detectors planted in tests/common.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from detectors.ensemble import Ensemble
from detectors.methods.shifts import PredictionShift
from detectors.methods.twins import TwinDisagreement
from detectors.neighbours.noise import Noise
from detectors.neighbours.squeezing import MedianShift
from lab.attacks.adaptive import Adaptive, Way
from lab.attacks.adaptive_forms import AdaptiveSuite, FeatureMatching, TwinTransfer
from lab.attacks.attack import Attack, Target
from lab.attacks.gate import Gate
from lab.attacks.guarded import HELD, GatewayDecisions, guarded
from lab.attacks.pgd import PGD
from lab.attacks.scene import Scene
from lab.seeds import seeds_of
from planted_detectors import FPR, Grain, Perfect, guard

SIZE = 24
COUNT = 24


@pytest.fixture(scope="module")
def clean(more_figures: Tensor) -> Tensor:
    """400 images like those attacked, 0 to 1, that nothing was trained on."""
    return more_figures / 255


@pytest.fixture(scope="module")
def weak(figures: Any, other_figures: Any, clean: Tensor) -> Ensemble:
    return guard(figures.network, {"other": other_figures.network}, Grain(), clean, SIZE)


def evaded(ensemble: Ensemble, figures: Any, attack: Attack, count: int = COUNT) -> int:
    """Images that are misread and admitted, as what is deployed judges."""
    images, labels = figures.images[:count], figures.labels[:count]
    return admitted_wrong(ensemble, figures.target, attack(figures.target, images, labels).images, labels)


def admitted_wrong(ensemble: Ensemble, target: Target, images: Tensor, labels: Tensor) -> int:
    rendered = target.view(images)
    calm = ensemble.examine(rendered, seeds_of(rendered)).p_value > FPR
    return int((target.judged(images, labels, batch=32).success & calm).sum())


@pytest.mark.parametrize("way", get_args(Way))
def test_a_planted_weak_detector_falls_to_every_way(weak: Ensemble, figures: Any, way: Way) -> None:
    blind = evaded(weak, figures, PGD(eps=8, steps=30))
    informed = evaded(weak, figures, Adaptive(eps=8, ensemble=weak, steps=60, ways=(way,), restarts=1))

    assert blind < 0.3 * COUNT
    assert informed > 0.8 * COUNT


@pytest.mark.parametrize(
    "form",
    [
        lambda e: Adaptive(eps=10, ensemble=e, steps=60, grain=4, restarts=1),
        lambda e: TwinTransfer(eps=10, ensemble=e, steps=60, restarts=1),
        lambda e: FeatureMatching(eps=10, ensemble=e, steps=60, restarts=1),
    ],
    ids=["low-frequency", "twins", "features"],
)  # fmt: skip
def test_it_falls_to_every_form(weak: Ensemble, figures: Any, form: Any) -> None:
    assert evaded(weak, figures, form(weak)) > 0.6 * COUNT


def test_a_planted_perfect_detector_does_not_fall(figures: Any, other_figures: Any, clean: Tensor) -> None:
    """Else the judge, and not the attack, would find success where there is none."""
    known = torch.cat([clean[:100], figures.images[:COUNT] / 255])
    perfect = guard(figures.network, {"other": other_figures.network}, Perfect(known), known, SIZE)
    found = AdaptiveSuite(eps=16, ensemble=perfect, steps=6, restarts=1)(
        figures.target, figures.images[:COUNT], figures.labels[:COUNT]
    )

    assert not bool(found.success.any())
    assert admitted_wrong(perfect, figures.target, found.images, figures.labels[:COUNT]) == 0


def test_without_bounds_everything_is_evaded(weak: Ensemble, figures: Any) -> None:
    assert evaded(weak, figures, Adaptive(eps=255, ensemble=weak, steps=100, restarts=4)) == COUNT


def test_more_budget_never_evades_less(weak: Ensemble, figures: Any) -> None:
    counts = [evaded(weak, figures, Adaptive(eps=eps, ensemble=weak, steps=40)) for eps in (1.0, 3.0, 6.0, 12.0)]

    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_many_steps_evade_more_than_one(weak: Ensemble, figures: Any) -> None:
    one, many = (
        evaded(weak, figures, Adaptive(eps=6, ensemble=weak, steps=steps, stride=stride))
        for steps, stride in ((1, 1.0), (40, 0.25))
    )

    assert many > one


def test_gradients_beat_questions_and_questions_beat_noise(weak: Ensemble, figures: Any) -> None:
    """White box, then black box on the verdicts alone, then random signs of the same size."""
    eps = 12.0
    white = evaded(weak, figures, Adaptive(eps=eps, ensemble=weak, steps=40))
    black = evaded(weak, figures, GatewayDecisions(eps=eps, ensemble=weak, steps=8, probes=30))
    draws = torch.Generator().manual_seed(0)
    signs = torch.randn(figures.images[:COUNT].shape, generator=draws).sign()
    noise = (figures.images[:COUNT] + eps * signs).clamp(0, 255)
    random = admitted_wrong(weak, figures.target, noise, figures.labels[:COUNT])

    assert white >= black > random


def test_a_verdict_is_all_that_the_black_box_hears(weak: Ensemble, figures: Any) -> None:
    target = guarded(figures.target, weak, FPR)
    held = target.task.margin(target.logits((figures.images[:4] / 64).round() * 64), figures.labels[:4])
    calm = target.task.margin(target.logits(figures.images[:4]), figures.labels[:4])

    assert bool((held == HELD).all())
    assert bool(((calm > 0) & (calm < HELD)).all())


def test_the_strongest_of_all_is_at_least_each(weak: Ensemble, figures: Any) -> None:
    suite = AdaptiveSuite(eps=4, ensemble=weak, steps=15, restarts=1)
    together = evaded(weak, figures, suite)

    assert together >= max(evaded(weak, figures, member) for member in suite.members)


def test_where_a_detector_draws_averaging_matters(figures: Any, clean: Tensor) -> None:
    """One draw's gradient is mostly noise; twenty draws' leads where the mean leads (Athalye et al. 2018)."""
    drawing = guard(figures.network, {}, PredictionShift(Noise(30.0)), clean, SIZE)
    scene = Scene.of(figures.target, figures.images[:8], figures.labels[:8], eps=8, norm="linf")

    def calm(samples: int, seed: int) -> Tensor:
        gate = Gate(drawing, threshold=-10.0, samples=samples)
        return gate.pulls(scene, scene.clean, torch.Generator().manual_seed(seed)).calm.flatten(1)

    mean = calm(150, seed=1)
    one, twenty = (float(torch.cosine_similarity(calm(samples, seed=2), mean).median()) for samples in (1, 20))

    assert twenty > one + 0.2


def fine(figures: Any) -> tuple[Target, Tensor]:
    """The same network before 16 bits, so that a small step is not rounded away; and the images there."""
    target = replace(figures.target, view=lambda stored: stored / 65535, level=257.0, high=65535.0)
    return target, figures.images[:COUNT] * 257


def test_the_gradient_is_what_finite_differences_say(figures: Any, other_figures: Any, clean: Tensor) -> None:
    """No gradient is masked: along both pulls, margin and statistic fall as they say, through twin and model."""
    ensemble = guard(figures.network, {"other": other_figures.network}, TwinDisagreement("other"), clean, SIZE)
    target, images = fine(figures)
    scene = Scene.of(target, images, figures.labels[:COUNT], eps=8, norm="linf")
    gate = Gate(ensemble, threshold=-1.0, samples=1)
    draws = torch.Generator().manual_seed(0)
    x = scene.anywhere(draws)
    pull = gate.pulls(scene, x, draws)
    reach = 0.05 / 255
    for direction, value in ((pull.misread, "margin"), (pull.calm, "excess")):
        ahead, behind = (getattr(gate.pulls(scene, x + end * reach * direction, draws), value) for end in (1, -1))
        assert float((ahead < behind).float().mean()) > 0.9
    leaf = x.clone().requires_grad_(True)
    margin = scene.judge(ensemble.probe.observe(target.view(scene.shown(leaf)), gate.needs, differentiable=True).logits)
    (slope,) = torch.autograd.grad(margin.sum(), leaf)
    step = reach * slope.sign()
    with torch.no_grad():
        ends = [scene.judge(target.logits(scene.shown(x + end * step))) for end in (1, -1)]
    measured, promised = ends[0] - ends[1], 2 * (slope * step).sum((1, 2, 3))
    assert float(((measured - promised).abs() / promised).median()) < 0.05


def test_what_stands_in_for_a_gradient_leads_downhill(figures: Any, clean: Tensor) -> None:
    """BPDA: along the surrogate's direction the true, rounded statistic of a median filter falls, over whole levels."""
    ensemble = guard(figures.network, {}, PredictionShift(MedianShift()), clean, SIZE)
    attacked = PGD(eps=4, steps=20)(figures.target, figures.images[:COUNT], figures.labels[:COUNT]).images
    scene = Scene.of(figures.target, attacked, figures.labels[:COUNT], eps=8, norm="linf")
    gate = Gate(ensemble, ensemble.conformal.threshold(FPR), samples=1)
    draws = torch.Generator().manual_seed(0)
    before = gate.pulls(scene, scene.clean, draws)
    after = gate.pulls(scene, scene.clean + 2 / 255 * before.calm.sign(), draws)
    loud = before.excess >= 0

    assert int(loud.sum()) >= 8
    assert float((after.excess < before.excess)[loud].float().mean()) > 0.8
