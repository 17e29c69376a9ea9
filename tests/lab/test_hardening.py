"""Promises of hardening: what a paper claims shows on small images, and what is broken is seen to break."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detectors.augmentation import Augmentation
from detectors.models.outputs import Task
from lab.attacks.attack import TASKS, Attack, Target
from lab.attacks.carlini_wagner import CarliniWagner
from lab.attacks.multiplied import Speckle
from lab.attacks.pgd import PGD
from lab.hardening.dual_norm import DualNorm
from lab.hardening.method import Course, Method
from lab.hardening.registry import METHODS, named
from lab.hardening.ssat import labelled
from lab.learning import DivergedError, Recipe

SIDE = 16
LEVEL = 4
QUICK = {"steps": 4, "stride": 0.4}
"""Fewer steps of the attack in training: enough for images this small."""
ROBUST = ("pgd_at", "trades", "mart", "ssat", "ard", "dual_norm", "twin", "input_gradient", "vit")
TEACHERS = {"ard": "pgd_at", "twin": "plain"}
"""As the methods would train them, so each is trained once."""


def shown(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy grey images of two classes.

    A bright or a dark middle tells them in 95 of 100, and a fine chequer of three grey levels in all: who learns
    from that is misled by four grey levels.
    """
    draws = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    sign = 2.0 * labels - 1
    middle = torch.where(torch.rand(count, generator=draws) < 0.95, sign, -sign)
    place = torch.arange(SIDE)
    away = (place - 7.5).square()
    bright = torch.exp(-(away[:, None] + away) / 30)
    chequer = (place[:, None] + place) % 2 * 2.0 - 1
    signal = 16 * middle[:, None, None] * bright + 3 * sign[:, None, None] * chequer
    noise = 6 * torch.randn(count, SIDE, SIDE, generator=draws)
    return (110 + signal + noise).round().clamp(0, 255)[:, None], labels


def quick(name: str) -> Method:
    known = {each.name for each in fields(METHODS[name])}
    return named(name, **{key: value for key, value in QUICK.items() if key in known})


def course(method: Method, *, epochs: int = 12, seed: int = 0) -> Course:
    images, labels = shown(256, seed=0)
    return Course(images / 255, labels, 2, Task.MULTICLASS, small(method.recipe, epochs), seed)


def small(usual: Recipe, epochs: int) -> Recipe:
    return replace(
        usual, widths=(8, 12), blocks=(1, 1), strides=(1, 2), epochs=epochs, batch=32,
        peak_rate=min(1e-2, 3 * usual.peak_rate), augmentation=Augmentation(0.0, 0.0, 0.0, 0.0),
    )  # fmt: skip


@cache
def trained(name: str) -> nn.Module:
    method = quick(name)
    teacher = trained(TEACHERS[name]) if name in TEACHERS else None
    return method(replace(course(method), teacher=teacher, origin=TEACHERS.get(name, "")))


@cache
def right(name: str, attack: Attack | None) -> float:
    """Share of a trained network's right answers to new images under an attack."""
    return answered(trained(name), attack)


def answered(network: nn.Module, attack: Attack | None) -> float:
    images, labels = shown(80, seed=2)
    target = Target(network, lambda x: x / 255, 1.0, 0.0, 255.0, TASKS["multiclass"])
    judged = target.judged(images, labels, batch=80) if attack is None else attack(target, images, labels)
    return float((~judged.success).float().mean())


@pytest.mark.parametrize("name", ROBUST)
def test_a_hardened_network_withstands_what_misleads_a_plain_one(name: str) -> None:
    attack = PGD(eps=LEVEL, steps=20, confidence=0.0)

    clean, robust, plain = right(name, None), right(name, attack), right("plain", attack)
    assert clean > 0.85
    assert robust > plain + 0.2


def test_another_architecture_is_no_defence() -> None:
    attack = PGD(eps=LEVEL, steps=20, confidence=0.0)

    assert right("densenet", None) > 0.85
    assert right("densenet", attack) < right("pgd_at", attack) - 0.3


def test_images_that_a_network_would_halve_to_nothing_are_refused() -> None:
    method = named("densenet")
    tiny = Course(torch.zeros(0, 1, 8, 16), torch.zeros(0), 2, Task.MULTICLASS, method.recipe, seed=0)
    with pytest.raises(ValueError, match="8 x 16 pixels are fewer than 16 x 16"):
        method.network(tiny, None)


def test_defensive_distillation_is_broken_on_the_logits() -> None:
    """Carlini and Wagner's attack, within a length that adversarial training withstands."""
    attack = CarliniWagner(eps=LEVEL, steps=40, searches=3, weight=10.0)

    broken = right("distillation", attack)
    assert right("distillation", None) > 0.85
    assert broken <= right("plain", attack) + 0.1
    assert broken < right("pgd_at", attack) - 0.3


@pytest.mark.parametrize("name", ["sign", "feature_noise", "speckle"])
def test_what_is_no_defence_learns_and_is_misled(name: str) -> None:
    """Their papers compare with random noise, with transferred attacks, or with few steps."""
    assert right(name, None) > 0.85
    assert right(name, PGD(eps=8, steps=40, confidence=0.0)) < 0.2


def test_speckle_training_steadies_against_speckle() -> None:
    noise = Speckle(strength=0.9)

    assert right("speckle", noise) >= right("plain", noise)


def test_attacks_on_a_plain_network_carry_over_to_the_signs_less_than_to_itself() -> None:
    """What makes it a voter."""
    images, labels = shown(80, seed=2)
    plain = Target(trained("plain"), lambda x: x / 255, 1.0, 0.0, 255.0)
    found = PGD(eps=LEVEL, steps=20)(plain, images, labels).images
    signs = Target(trained("sign"), lambda x: x / 255, 1.0, 0.0, 255.0)

    assert signs.judged(found, labels, batch=80).success.sum() < plain.judged(found, labels, batch=80).success.sum()


def test_the_clean_statistics_of_two_are_the_less_robust() -> None:
    network = trained("dual_norm")
    attack = PGD(eps=LEVEL, steps=20, confidence=0.0)
    attacked = answered(network, attack)
    parts = [part for part in network.modules() if isinstance(part, DualNorm)]
    for part in parts:
        part.branch = "clean"
    clean = answered(network, attack)
    for part in parts:
        part.branch = "attacked"

    assert len(parts) == 6
    assert clean < attacked


@pytest.mark.parametrize("name", ["mpadvt", "maadvt"])
def test_networks_of_several_findings_are_hardened_too(name: str) -> None:
    """The finding of the images, and its opposite."""
    assert of_findings(name) > of_findings("plain") + 0.2


@cache
def of_findings(name: str) -> float:
    """Share of new images, all of whose findings are right under attack."""
    (images, labels), (fresh, wanted) = shown(256, seed=0), shown(80, seed=2)
    both, fresh_both = (torch.stack([each, 1 - each], 1) for each in (labels, wanted))
    method = quick(name)
    network = method(Course(images / 255, both, 2, Task.MULTILABEL, small(method.recipe, 12), seed=0))
    target = Target(network, lambda x: x / 255, 1.0, 0.0, 255.0, TASKS["multilabel"])
    attack = PGD(eps=LEVEL, steps=20, confidence=0.0)
    return float((~attack(target, fresh, fresh_both).success).float().mean())


@pytest.mark.parametrize("name", ["trades", "distillation"])
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(name: str, tmp_path: Path) -> None:
    """With its teacher, which is not trained again, its running mean, and everything that is drawn."""
    method = quick(name)
    whole = method(course(method, epochs=2, seed=4))
    stages: list[str] = []

    def stop(stage: str, share: float) -> None:
        if stage == f"training {name}" and share >= 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method(replace(course(method, epochs=2, seed=4), folder=tmp_path, watch=stop))
    resumed = method(
        replace(course(method, epochs=2, seed=4), folder=tmp_path, watch=lambda stage, _: stages.append(stage))
    )

    assert same(whole, resumed)
    assert stages.count(f"training {name}") == 2  # where it began, and the epoch that was missing
    assert not same(whole, method.network(course(method), None))


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_few_labels_are_of_every_class_and_the_others_are_never_looked_at() -> None:
    method = named("ssat", share=0.05)
    first = course(method, epochs=1)
    known = labelled(first.labels, first.task, 0.05, first.seed)
    order = torch.randperm(len(first.labels), generator=torch.Generator().manual_seed(first.seed))
    later = order[int(torch.isin(order, known).nonzero().max()) + 1 :]
    hidden = first.labels.clone()
    each = [later[first.labels[later] == k] for k in (0, 1)]
    swapped = min(len(places) for places in each)
    for k, places in enumerate(each):
        hidden[places[:swapped]] = 1 - k

    assert sorted(first.labels[known].tolist()) == [0] * 7 + [1] * 7
    assert swapped > 20
    assert same(method(first), method(replace(first, labels=hidden)))


def test_a_twin_of_a_given_model_needs_no_labels() -> None:
    method = named("twin")
    given = replace(course(method, epochs=1), teacher=trained("plain"), origin="given")

    assert same(method(given), method(replace(given, labels=torch.zeros_like(given.labels))))


def test_a_loss_that_is_no_number_ends_the_training() -> None:
    method = named("pgd_at")
    broken = course(method, epochs=1)
    broken.images[7] = torch.nan

    with pytest.raises(DivergedError, match="epoch 1"):
        method(broken)


@pytest.mark.parametrize("made", METHODS.values())
def test_what_a_method_shows_is_its_configuration(made: type[Method]) -> None:
    method = made()

    assert repr(method).startswith(f"{made.__name__}(")
    assert all(f"{each.name}={getattr(method, each.name)!r}" in repr(method) for each in fields(method))
    assert method.paper
    assert method.broken_by
    assert method.limits


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: named("magic"), "no method is called"),
        (lambda: named("trades", beta=3), "no option beta"),
        (lambda: named("trades", weight="much"), "must be like"),
        (lambda: named("pgd_at", eps=-1), "above 0"),
        (lambda: named("ssat", share=2), "at most 1"),
        (lambda: named("dual_norm", branch="both"), "one of clean, attacked"),
        (lambda: named("vit", heads=5), "multiple of heads"),
    ],
)
def test_a_wrong_option_is_named(ask: Callable[[], Method], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ask()
