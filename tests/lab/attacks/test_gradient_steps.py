"""Projected gradient descent and its single step: what they find, repeat and refuse; budgets are in test_budgets."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from attack_profile import PROFILE
from gateway.pixels.imaging import LookupTable, Rendering
from lab.attacks.attack import Attack, Target
from lab.attacks.fgsm import FGSM
from lab.attacks.pgd import PGD

CT = Rendering(stored=(0, 4095), slope=1.0, intercept=-1024.0, modality="CT")


def network(seed: int = 0) -> nn.Module:
    """A small untrained network: as differentiable and as easily led astray as a trained one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 5, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)
        ).requires_grad_(requires_grad=False)


def scans(count: int, size: int = 48, seed: int = 1) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randint(100, 900, (count, 1, size, size), generator=draws).float()


ATTACKS: list[Attack] = [PGD(eps=2.0, steps=4, restarts=2), PGD(eps=2.0, steps=4, loss="ce"), FGSM(eps=2.0)]


def test_pgd_does_at_least_as_well_as_one_step() -> None:
    target = Target.of_dicom(network(), CT, PROFILE)
    images = scans(16)
    labels = target.logits(images).argmax(dim=1)
    many, one = PGD(eps=2.0, steps=20)(target, images, labels), FGSM(eps=2.0)(target, images, labels)

    assert many.margin.mean() <= one.margin.mean()


def test_more_restarts_never_lose_what_fewer_found() -> None:
    target = Target.of_dicom(network(), CT, PROFILE)
    images = scans(12)
    labels = target.logits(images).argmax(dim=1)
    one = PGD(eps=0.5, steps=3)(target, images, labels)
    three = PGD(eps=0.5, steps=3, restarts=3)(target, images, labels)

    assert bool((three.margin <= one.margin + 1e-6).all())


def test_the_same_configuration_stores_the_same_images() -> None:
    target = Target.of_dicom(network(), CT, PROFILE)
    images, labels = scans(3), torch.tensor([0, 1, 2])

    first, second = (PGD(eps=2.0, steps=3, seed=7)(target, images, labels).images for _ in range(2))
    other = PGD(eps=2.0, steps=3, seed=8)(target, images, labels).images

    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_a_scan_that_is_already_misread_is_left_alone() -> None:
    target = Target.of_dicom(network(), CT, PROFILE)
    images = scans(4)
    wrong = target.logits(images).argmin(dim=1)
    found = PGD(eps=2.0, steps=2)(target, images, wrong)

    assert torch.equal(found.images, images)
    assert bool(found.success.all())


def test_eight_bit_images_are_attacked_in_whole_levels() -> None:
    target = Target.of_uint8(network(), PROFILE)
    draws = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 1, 24, 24), generator=draws).float()
    found = PGD(eps=2.5, steps=3)(target, images, torch.tensor([0, 1, 2]))

    assert float((found.images - images).abs().max()) == 2
    assert 0 <= float(found.images.min()) <= float(found.images.max()) <= 255


def test_the_representation_is_the_configuration() -> None:
    assert repr(PGD(eps=2.0, steps=5)) == (
        "PGD(eps=2.0, batch=32, seed=0, steps=5, restarts=1, stride=0.15, loss='margin', norm='linf', "
        "goal=None, confidence=inf, random=True)"
    )
    assert repr(FGSM(eps=1.0)) == "FGSM(eps=1.0, batch=32, seed=0, loss='ce')"


def test_a_lookup_table_has_no_grey_level() -> None:
    table = LookupTable(first=0.0, entries=torch.arange(10.0), ceiling=9.0)
    rendering = Rendering(stored=(0, 9), modality_table=table, modality="CT")
    with pytest.raises(ValueError, match="no fixed size"):
        Target.of_dicom(network(), rendering, PROFILE)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(2, 48, 48), torch.zeros(2, dtype=torch.int64), "rows, columns"),
        (torch.zeros(2, 1, 48, 48, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), "float32"),
        (torch.zeros(2, 1, 48, 48), torch.zeros(3, dtype=torch.int64), "labels"),
        (torch.full((2, 1, 48, 48), 0.5), torch.zeros(2, dtype=torch.int64), "whole numbers"),
    ],
)
def test_what_no_file_holds_is_refused(images: Tensor, labels: Tensor, words: str) -> None:
    target = Target.of_dicom(network(), CT, PROFILE)
    for attack in ATTACKS:
        with pytest.raises(ValueError, match=words):
            attack(target, images, labels)


@pytest.mark.parametrize("wrong", [{"eps": 0.0}, {"eps": 1.0, "steps": 0}, {"eps": 1.0, "loss": "hinge"}])
def test_an_impossible_configuration_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must be"):
        PGD(**wrong)  # type: ignore[arg-type]
