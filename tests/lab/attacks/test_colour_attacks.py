"""Every attack takes images in colour: each channel within the budget, storable, and each channel searched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import lesions
from gateway.profile import Profile
from lab.attacks import named
from lab.attacks.attack import Target
from lab.attacks.features import AttentionAttack
from lab.attacks.registry import names
from lab.attacks.transfer import Transfer

SIZE, EPS = 24, 8
FEW: dict[str, dict[str, Any]] = {
    "autoattack": {"steps": 5, "queries": 20},
    "square": {"queries": 60},
    "hopskipjump": {"steps": 2, "probes": 20},
    "nes": {"steps": 4, "probes": 8},
    "zoo": {"steps": 6, "cells": 8},
    "gradient-simulation": {"steps": 4, "probes": 8},
    "cw": {"steps": 20, "searches": 3},
    "gap": {"epochs": 4},
    "advgan": {"epochs": 4},
    "lesion-tampering": {"tries": 4},
}
ALONE = [name for name in names(alone=True) if name != "asma"]
"""All that need nothing but a budget, and no masks."""
ONE_FACTOR = {"bias-field", "lesion-tampering", "deformation"}
"""Light and shape change alike in every channel."""
SURE = {"pgd", "bim", "apgd", "autoattack", "fab", "cw", "deepfool", "low-frequency-pgd", "momentum-pgd"}

Readings = tuple[Target, Tensor, Tensor]


@pytest.fixture(scope="module")
def skin() -> Readings:
    """A small network that tells drawn lesions apart, and stored images that it reads rightly."""
    profile = Profile.from_toml(
        b'name="skin"\nversion="1"\ntask="multiclass"\nclasses=["even","ragged"]\n[input]\nname="image"\nlayout="NCHW"\n'
        b"channels=3\nsize=[24,24]\nrange=[0.0,1.0]\nmean=[0.7,0.5,0.4]\nstd=[0.2,0.25,0.3]\n"
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 12, 5, 2), nn.ReLU(), nn.Conv2d(12, 24, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(384, 2)
        )
    target = Target.of_uint8(network, profile)
    (images, labels), (fresh, fresh_labels) = (_stored(count, seed) for count, seed in ((240, 1), (40, 2)))
    optimiser, draws = torch.optim.Adam(network.parameters(), 3e-3), torch.Generator().manual_seed(0)
    for _ in range(120):
        chosen = torch.randint(len(images), (32,), generator=draws)
        loss = functional.cross_entropy(target.logits(images[chosen]), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval().requires_grad_(requires_grad=False)
    right = target.judged(fresh, fresh_labels, batch=40).margin > 0
    assert int(right.sum()) >= 20
    return target, fresh[right][:12], fresh_labels[right][:12]


def _stored(count: int, seed: int) -> tuple[Tensor, Tensor]:
    images, labels = lesions.lesions(count, SIZE, seed)
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous(), torch.from_numpy(labels)


@pytest.mark.parametrize("name", ALONE)
def test_every_attack_takes_colour(name: str, skin: Readings) -> None:
    target, images, labels = skin
    attack = named(name, **FEW.get(name, {}), **({"eps": EPS} if _bounded(name) else {}))

    found = attack(target, images, labels)

    assert found.images.shape == images.shape
    assert torch.equal(found.images, found.images.round())
    assert found.images.min() >= 0
    assert found.images.max() <= 255
    if _bounded(name):
        assert (found.images - images).abs().max() <= EPS
    again = target.judged(found.images, labels, batch=12)
    assert torch.equal(again.success, found.success)
    if name in SURE:
        assert int(found.success.sum()) >= 6
    if name not in ONE_FACTOR:
        moved = found.images - images
        assert bool((moved != moved[:, :1]).any()), "all channels changed alike"


def _bounded(name: str) -> bool:
    """Whether it searches a ball of grey levels."""
    return name not in {"cw", "deepfool", "patch", "bias-field", "speckle", "adversarial-speckle", "hopskipjump"} | (
        ONE_FACTOR
    )


def test_a_patch_leaves_the_rest_of_the_image_alone(skin: Readings) -> None:
    target, images, labels = skin
    found = named("patch", share=0.05, steps=10)(target, images, labels)
    changed = (found.images != images).any(dim=1).flatten(1).sum(dim=1)
    assert int(changed.max()) <= 0.05 * SIZE**2


def test_a_transferred_attack_takes_colour(skin: Readings) -> None:
    target, images, labels = skin
    carried = Transfer(attack=named("pgd", eps=EPS, steps=5), surrogate=target.model, origin="the same model")
    assert int(carried(target, images, labels).success.sum()) >= 4


def test_attention_is_led_astray_in_colour(skin: Readings) -> None:
    target, images, labels = skin

    assert isinstance(target.model, nn.Sequential)
    first, rest = target.model[:2], target.model[2:]

    def features(x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        seen = first(x)
        return rest(seen), {"first": seen}

    attack = AttentionAttack(eps=EPS, features=features, layer="first", steps=10)
    assert int(attack(target, images, labels).success.sum()) >= 3


def test_images_of_two_channels_are_refused(skin: Readings) -> None:
    target, images, labels = skin
    with pytest.raises(ValueError, match="1 or 3"):
        named("fgsm", eps=EPS)(target, images[:, :2], labels)
