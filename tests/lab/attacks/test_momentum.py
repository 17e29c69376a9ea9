"""Momentum, smoothing and diversity are what their papers say, and mislead."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from lab.attacks.attack import Target
from lab.attacks.momentum import MomentumPGD, shrunken, smoothed
from lab.attacks.pgd import BIM

SIDE, LEVELS = 16, 65535
"""16 bits: rounding does not matter."""


def target_of(lead: Callable[[Tensor], Tensor]) -> Target:
    """A model of two classes: the lead (N,) of the second, of images in units of the window."""

    def model(x: Tensor) -> Tensor:
        led = lead(x)
        return torch.stack([-led, led], dim=1)

    return Target(model, lambda x: x / LEVELS, LEVELS / 255, 0.0, float(LEVELS))


def grey(level: float = 100.0) -> tuple[Tensor, Tensor]:
    return torch.full((1, 1, SIDE, SIDE), round(level * LEVELS / 255.0)).float(), torch.tensor([0])


@pytest.mark.parametrize("kernel", [3, 7])
def test_smoothing_is_the_mean_gradient_of_all_shifted_images(kernel: int) -> None:
    """Dong et al. 2019, equations 5 to 7: exact where the gradient does not depend on the point."""
    draws = torch.Generator().manual_seed(0)
    weights, reach = torch.randn(1, 2, SIDE, SIDE, generator=draws), kernel // 2
    image = torch.rand(1, 2, SIDE, SIDE, generator=draws, requires_grad=True)
    lead, total = torch.zeros(()), 0.0
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            share = math.exp(-(down**2 + right**2) / (2 * (reach / math.sqrt(3)) ** 2))
            moved = functional.pad(image, (right, -right, down, -down))
            lead, total = lead + share * (weights * moved).sum(), total + share
    (shared,) = torch.autograd.grad(lead / total, image)

    assert torch.allclose(smoothed(weights, kernel), shared, atol=1e-5)


def test_without_a_kernel_the_gradient_stays_as_it_is() -> None:
    gradient = torch.randn(2, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    assert torch.equal(smoothed(gradient, 0), gradient)


@pytest.mark.parametrize("kernel", [0, 7])
def test_on_a_plane_every_value_goes_where_the_smoothed_gradient_points(kernel: int) -> None:
    weights = torch.randn(1, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    target = target_of(lambda x: (x * weights).flatten(1).sum(dim=1) - 1e6)
    image, label = grey()

    found = MomentumPGD(eps=2.0, steps=10, stride=0.5, kernel=kernel)(target, image, label)

    assert torch.equal(found.images - image, 2 * target.level * smoothed(weights, kernel).sign())


@pytest.mark.parametrize(
    ("momentum", "way"), [(0.0, [0, 1, 2, 3, 2, 3]), (0.8, [0, 1, 2, 3, 4, 3]), (1.0, [0, 1, 2, 3, 4, 5])]
)
def test_a_step_follows_the_sum_of_normalised_gradients(momentum: float, way: list[float]) -> None:
    """Dong et al. 2018, equations 6 and 7: past the ridge, the sum carries on until it is used up.

    Up to the ridge the sum grows by 1 each step, whatever the slope: 1, 2, 3, or with 0.8 of it kept 1, 1.8, 2.44.
    Beyond, where the slope is forty times as steep, each step takes 1 from it.
    """
    asked: list[float] = []
    ridge = 102.5 / 255

    def lead(x: Tensor) -> Tensor:
        middle = x.mean(dim=(1, 2, 3))
        if x.requires_grad:
            asked.append(float(middle.detach()) * 255 - 100)
        return torch.where(middle < ridge, middle - ridge, 40 * (ridge - middle)) - 1

    MomentumPGD(eps=10.0, steps=6, stride=0.1, momentum=momentum, kernel=0)(target_of(lead), *grey())

    assert asked == pytest.approx(way, abs=0.01)


def test_a_diverse_step_sees_the_image_shrunken_in_a_blank_frame() -> None:
    images = torch.full((2, 1, 20, 30), 9.0)
    least, most = shrunken(images, [0.0, 0.999, 0.0], 1.0), shrunken(images, [1.0, 0.5, 0.5], 1.0)

    assert torch.equal(most, images)
    assert least.shape == images.shape
    assert torch.allclose(least[:, :, 2:, :27], images[:, :, 2:, :27])
    assert bool((least[:, :, :2] == 1).all())
    assert bool((least[:, :, :, 27:] == 1).all())


def test_what_diverse_steps_find_is_judged_on_the_image_itself(figures: Any) -> None:
    attack = MomentumPGD(eps=6.0, kernel=0, diversity=0.7)
    found = attack(figures.target, figures.images, figures.labels)

    again = figures.target.judged(found.images, figures.labels, batch=32)
    assert torch.equal(found.success, again.success)
    assert float(found.success.float().mean()) > 0.5
    assert torch.equal(found.images, attack(figures.target, figures.images, figures.labels).images)
    assert not torch.equal(found.images, MomentumPGD(eps=6.0, kernel=0)(*_all(figures)).images)


def test_momentum_misleads_about_as_often_as_small_steps(figures: Any) -> None:
    """On the model itself neither is much ahead; smoothing costs some of it."""
    plain = BIM(eps=3.0, steps=20, loss="margin")(*_all(figures)).success.float().mean()
    summed = MomentumPGD(eps=3.0, kernel=0)(*_all(figures)).success.float().mean()
    smooth = MomentumPGD(eps=3.0, kernel=3)(*_all(figures)).success.float().mean()

    assert float(summed) >= float(plain) - 0.05
    assert float(smooth) > 0.3


def _all(trained: Any) -> tuple[Target, Tensor, Tensor]:
    return trained.target, trained.images, trained.labels


def test_masks_are_not_moved_with_their_images(outlines: Any) -> None:
    with pytest.raises(ValueError, match="not for segmentation"):
        MomentumPGD(eps=2.0, diversity=0.5)(*_all(outlines))
    assert len(MomentumPGD(eps=2.0, steps=2)(*_all(outlines)).images)


@pytest.mark.parametrize(
    "wrong", [{"kernel": 4}, {"kernel": -1}, {"momentum": -0.5}, {"diversity": 1.5}, {"diversity": -0.1}, {"steps": 0}]
)
def test_an_impossible_configuration_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must"):
        MomentumPGD(eps=2.0, **wrong)
