"""No attack leaves its budget, whatever the header says: the promise of every attack that has a name."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from attack_profile import PROFILE
from gateway.pixels.imaging import Rendering
from lab import attacks
from lab.attacks.attack import Attack, Target
from lab.attacks.features import Cluster
from lab.attacks.pgd import PGD
from lab.attacks.registry import ATTACKS
from lab.attacks.scene import Scene

SHORT: dict[str, Any] = {
    "steps": 2,
    "queries": 6,
    "epochs": 1,
    "searches": 2,
    "restarts": 1,
    "targets": 2,
    "probes": 4,
    "tries": 3,
    "cells": 4,
    "halvings": 3,
    "width": 2,
}
GAIN, STRENGTH, SHARE = 1.2, 0.1, 0.02
BOUNDED_OTHERWISE = {"bias-field", "patch", "speckle", "adversarial-speckle", "deformation", "lesion-tampering"}
"""Their budgets are no ball of grey levels; each has a test of its own below."""

OF_CLASSES = [name for name in attacks.names() if name != "asma"]
"""Attacks on a model that names a class; ASMA is for masks alone."""
IN_L2 = {"cw", "asma"}


def network(seed: int = 0) -> nn.Module:
    """Untrained: as easily led astray as a trained one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten())
        return nn.Sequential(body, nn.Linear(256, 3)).requires_grad_(requires_grad=False)


CLASSIFIER = network()


def inside(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The classifier with its last features."""
    deep = CLASSIFIER[0][:-1](x)  # type: ignore[index]
    return CLASSIFIER[1](deep.flatten(1)), {"deep": deep}  # type: ignore[index]


def clusters() -> dict[str, Cluster]:
    draws = torch.Generator().manual_seed(0)
    return {"deep": Cluster(torch.rand(3, 2, 16, generator=draws), torch.full((3, 2, 16), 0.1))}


NEEDED: dict[str, Callable[[float], dict[str, Any]]] = {
    "feature-hiding": lambda eps: {"eps": eps, "features": inside, "clusters": clusters(), "steps": 2},
    "attention": lambda eps: {"eps": eps, "features": inside, "layer": "deep", "steps": 2},
    "transfer": lambda eps: {"attack": PGD(eps=eps, steps=2), "surrogate": network(1), "origin": "another start"},
}
"""What attacks that need more than a budget are made with."""


def short(name: str, eps: float, **options: object) -> Attack:
    """An attack of a few steps."""
    known = {each.name for each in fields(ATTACKS[name])}  # type: ignore[arg-type]
    chosen = {key: value for key, value in {**SHORT, **options}.items() if key in known}
    if name in NEEDED:
        return attacks.named(name, **NEEDED[name](eps))
    return attacks.named(name, **chosen, **({"eps": eps} if name not in BOUNDED_OTHERWISE else {}))


def target_of(stored: tuple[int, int], slope: float) -> Target:
    return Target.of_dicom(CLASSIFIER, Rendering(stored=stored, slope=slope, intercept=-1024.0, modality="CT"), PROFILE)


def scans(target: Target, seed: int) -> Tensor:
    """Images that touch both ends of what can be stored."""
    draws = torch.Generator().manual_seed(seed)
    images = (torch.rand(2, 1, 28, 28, generator=draws) * (target.high - target.low) + target.low).round()
    images[:, :, :3], images[:, :, -3:] = target.low, target.high
    return images


@pytest.mark.parametrize("name", OF_CLASSES)
@settings(max_examples=6, deadline=None)
@given(
    eps=st.floats(0.5, 16),
    slope=st.sampled_from([0.25, 0.5, 1.0, 2.0]),
    stored=st.sampled_from([(0, 255), (0, 4095), (-2048, 2047), (-32768, 32767)]),
    seed=st.integers(0, 1000),
)
def test_no_budget_is_ever_exceeded(name: str, eps: float, slope: float, stored: tuple[int, int], seed: int) -> None:
    """What is stored is whole, storable, within the budget, and judged as it is stored."""
    target = target_of(stored, slope)
    images = scans(target, seed)
    before, labels = images.clone(), target.logits(images).argmax(dim=1)
    attack = short(name, eps, seed=seed)
    if name not in BOUNDED_OTHERWISE and eps * target.level < 1:
        with pytest.raises(ValueError, match="storable"):
            attack(target, images, labels)
        return
    found = attack(target, images, labels)

    assert torch.equal(images, before)
    assert torch.equal(found.images, found.images.round())
    assert target.low <= float(found.images.min()) <= float(found.images.max()) <= target.high
    assert torch.equal(found.success, found.margin < 0)
    again = target.judged(found.images, labels, batch=2)
    assert torch.allclose(found.margin, again.margin, atol=1e-4) or not bool(found.success.any())
    assert torch.equal(found.success, again.success)
    if name in BOUNDED_OTHERWISE:
        return
    change = (found.images - images) / target.level
    if getattr(attack, "norm", "l2" if name in IN_L2 else "linf") == "l2":
        assert float(change.square().mean(dim=(1, 2, 3)).sqrt().max()) <= eps * (1 + 1e-5)
    else:
        assert float(change.abs().max()) <= eps + 1e-4


@pytest.mark.parametrize("name", ["pgd", "bim", "apgd", "fab", "deepfool", "autoattack", "hopskipjump"])
@settings(max_examples=6, deadline=None)
@given(eps=st.floats(0.3, 8), stored=st.sampled_from([(0, 255), (-2048, 2047)]), seed=st.integers(0, 100))
def test_no_length_is_ever_exceeded(name: str, eps: float, stored: tuple[int, int], seed: int) -> None:
    """The same for L2: rounding lengthens nothing, though it moves every value."""
    target = target_of(stored, 1.0)
    images = scans(target, seed)
    labels = target.logits(images).argmax(dim=1)
    found = short(name, eps, norm="l2", seed=seed)(target, images, labels)

    rms = ((found.images - images) / target.level).square().mean(dim=(1, 2, 3)).sqrt()
    assert float(rms.max()) <= eps * (1 + 1e-5)
    assert torch.equal(found.images, found.images.round())


@settings(max_examples=15, deadline=None)
@given(stored=st.sampled_from([(0, 255), (0, 4095), (-2048, 2047)]), seed=st.integers(0, 100))
def test_a_field_never_leaves_its_gain(stored: tuple[int, int], seed: int) -> None:
    target = target_of(stored, 1.0)
    images = scans(target, seed)
    labels = target.logits(images).argmax(dim=1)
    found = short("bias-field", math.inf, gain=GAIN, rate=5.0)(target, images, labels)
    signal = (images - target.black).clamp(min=0)

    assert bool((found.images - images <= signal * (GAIN - 1) + 1e-2).all())
    assert bool((images - found.images <= signal * (1 - 1 / GAIN) + 1e-2).all())


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_a_gain_that_leaves_no_field_is_refused(gain: float) -> None:
    with pytest.raises(ValueError, match="gain must be above 1"):
        attacks.named("bias-field", gain=gain)


def test_limits_do_not_lift_the_ball() -> None:
    """A point of the ball that plain rounding takes out of it: what is stored lies in the limits and in the ball."""
    images = torch.full((2, 1, 16, 16), 120.0)
    target = Target(CLASSIFIER, lambda x: x / 255, 1.0, 0.0, 255.0)
    for norm, within in (("l2", 2.0), ("linf", 1.0)):
        scene = Scene.of(target, images, torch.zeros(2, dtype=torch.int64), eps=1.6, norm=norm)  # type: ignore[arg-type]
        bound = scene.between(scene.clean - 2 / 255, scene.clean + 2 / 255)
        change = bound.stored(bound.inside(scene.clean + 50 / 255)) - images
        assert float(change.abs().max()) <= within
        assert float(change.square().mean(dim=(1, 2, 3)).sqrt().max()) <= 1.6 + 1e-4
        assert torch.equal(bound.unbound().stored(scene.clean + 50 / 255), images + 50)


@pytest.mark.parametrize("name", ["speckle", "adversarial-speckle"])
@settings(max_examples=10, deadline=None)
@given(stored=st.sampled_from([(0, 255), (0, 4095), (-2048, 2047)]), seed=st.integers(0, 100))
def test_speckle_never_leaves_its_strength(name: str, stored: tuple[int, int], seed: int) -> None:
    target = target_of(stored, 1.0)
    images = scans(target, seed)
    labels = target.logits(images).argmax(dim=1)
    found = short(name, math.inf, strength=STRENGTH, seed=seed)(target, images, labels)
    signal = (images - target.black).clamp(min=0)

    assert bool(((found.images - images).abs() <= signal * STRENGTH + 1e-2).all())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), shared=st.booleans())
def test_a_patch_changes_nothing_but_its_square(seed: int, shared: bool) -> None:
    target = target_of((0, 4095), 1.0)
    images = scans(target, seed)
    labels = target.logits(images).argmax(dim=1)
    found = short("patch", math.inf, share=SHARE, shared=shared, seed=seed)(target, images, labels)

    side = math.floor(math.sqrt(SHARE * 28 * 28))
    for changed in found.images != images:
        rows, columns = changed[0].any(dim=1).nonzero(), changed[0].any(dim=0).nonzero()
        if len(rows):
            assert int(rows.max() - rows.min()) < side
            assert int(columns.max() - columns.min()) < side


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), eps=st.floats(1, 8))
def test_a_mask_attack_keeps_its_length(seed: int, eps: float, outlines: Any) -> None:
    images, labels = outlines.images[:2], outlines.labels[:2]
    found = short("asma", eps, seed=seed)(outlines.target, images, labels)

    assert float((found.images - images).square().mean(dim=(1, 2, 3)).sqrt().max()) <= eps * (1 + 1e-5)
    assert torch.equal(found.images, found.images.round())


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), pixels=st.sampled_from([0.5, 1.0, 2.5]))
def test_a_deformation_draws_on_its_neighbourhood_alone(seed: int, pixels: float) -> None:
    """No value lies outside those that the displacement can reach, times the gain."""
    target = target_of((0, 4095), 1.0)
    images = scans(target, seed)
    labels = target.logits(images).argmax(dim=1)
    found = short("deformation", math.inf, pixels=pixels, gain=GAIN, seed=seed)(target, images, labels)
    reach = math.ceil(pixels)
    wide = functional.pad(images, (reach,) * 4, mode="replicate")
    most = functional.max_pool2d(wide, 2 * reach + 1, 1)
    least = -functional.max_pool2d(-wide, 2 * reach + 1, 1)

    assert bool((found.images <= most + (most - target.black).clamp(min=0) * (GAIN - 1) + 1).all())
    assert bool((found.images >= least - (least - target.black).clamp(min=0) * (1 - 1 / GAIN) - 1).all())


@pytest.mark.parametrize("kind", ["insert", "remove"])
def test_tampering_changes_nothing_but_its_disc(kind: str) -> None:
    target = target_of((0, 4095), 1.0)
    images = scans(target, 0)
    labels = target.logits(images).argmax(dim=1)
    found = short("lesion-tampering", math.inf, kind=kind, radius=0.15)(target, images, labels)

    for changed in found.images != images:
        places = changed[0].nonzero().float()
        if len(places):
            assert float(torch.cdist(places, places).max()) <= 2 * 0.15 * 28


def test_every_attack_is_listed_once_and_says_what_it_needs() -> None:
    assert len(set(attacks.names())) == len(attacks.names()) >= 27
    with pytest.raises(ValueError, match="no attack is called 'nonsense'"):
        attacks.named("nonsense")
    with pytest.raises(ValueError, match="pgd needs eps"):
        attacks.named("pgd")
    with pytest.raises(ValueError, match="no option colour"):
        attacks.named("pgd", eps=1.0, colour="red")


def test_the_page_lists_every_attack() -> None:
    """In the order of the registry, so that neither forgets one."""
    page = (Path(__file__).parents[3] / "docs" / "attacks.md").read_text().partition("## The informed attacker")[0]

    assert tuple(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE)) == attacks.names()


@pytest.mark.parametrize("name", attacks.names())
def test_the_representation_is_the_configuration(name: str) -> None:
    attack = short(name, 2.0)

    assert all(f"{each.name}=" in repr(attack) for each in fields(ATTACKS[name]) if each.repr)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OF_CLASSES)
def test_what_is_done_twice_is_the_same(name: str) -> None:
    """A report can be made again: what is drawn comes from the seed."""
    target = target_of((0, 4095), 1.0)
    images = scans(target, 0)
    labels = target.logits(images).argmax(dim=1)

    assert torch.equal(*(short(name, 4.0)(target, images, labels).images for _ in range(2)))
