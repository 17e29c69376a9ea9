"""What an attack changed is told in grey levels, whatever the bit depth."""

from __future__ import annotations

import math

import pytest
import torch

from lab.attacks.attack import Target
from lab.attacks.measures import change, ssim


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_grey_level_is_one_at_any_depth(bits: int) -> None:
    white = 2.0**bits - 1
    target = Target(lambda x: x, lambda x: x, white / 255, 0.0, white)
    before = torch.full((2, 1, 10, 10), white / 2)
    after = before.clone()
    after[0] += 2 * target.level
    after[1, 0, 0, 0] -= 4 * target.level
    found = change(target, before, after)

    assert found.linf.tolist() == pytest.approx([2.0, 4.0], rel=1e-5)
    assert found.l2.tolist() == pytest.approx([20.0, 4.0], rel=1e-5)
    assert found.l1.tolist() == pytest.approx([200.0, 4.0], rel=1e-5)
    assert found.l0.tolist() == pytest.approx([1.0, 0.01])
    assert found.rms.tolist() == pytest.approx([2.0, 0.4])
    assert found.psnr.tolist() == pytest.approx([20 * math.log10(255 / 2), 20 * math.log10(255 / 0.4)])


def test_what_did_not_change_is_alike() -> None:
    target = Target(lambda x: x, lambda x: x, 1.0, 0.0, 255.0)
    images = torch.randint(256, (2, 1, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    found = change(target, images, images)

    assert found.ssim.tolist() == pytest.approx([1.0, 1.0])
    assert bool(found.psnr.isinf().all())


def test_noise_costs_more_likeness_than_a_shift_of_brightness() -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.rand(1, 1, 32, 32, generator=draws) * 0.5 + 0.2
    noise = 0.05 * (2 * torch.randint(2, images.shape, generator=draws) - 1)

    assert 0.5 < float(ssim(images, images + noise)) < float(ssim(images, images + 0.05)) < 1


def test_constant_images_compare_by_their_brightness_alone() -> None:
    """By hand: with no structure, (2ab + c) / (a^2 + b^2 + c)."""
    first, second = torch.full((1, 1, 12, 12), 0.4), torch.full((1, 1, 12, 12), 0.6)

    assert float(ssim(first, second)) == pytest.approx((2 * 0.24 + 1e-4) / (0.52 + 1e-4), abs=1e-4)
