"""The map of where the detectors disagree is bright where noise bears on the answer, and dark elsewhere."""

import pytest
import torch
from torch import Tensor

from detectors.errors import InputError
from detectors.heat import disagreement

SIDE = 64


def brightest(heat: Tensor) -> tuple[int, int]:
    place = int(heat.argmax())
    return place // heat.shape[1], place % heat.shape[1]


def lead(images: Tensor) -> Tensor:
    """A model that looks at the upper left quarter alone, the more the brighter it is."""
    return images[:, :, : SIDE // 2, : SIDE // 2].square().sum((1, 2, 3))


def scans(count: int = 1) -> Tensor:
    return torch.rand(count, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(3)) * 0.2 + 0.4


@pytest.mark.parametrize("gradients", [True, False])
def test_it_is_bright_where_noise_bears_on_the_answer_and_nowhere_else(gradients: bool) -> None:
    denoised = scans()
    noisy = denoised.clone()
    noisy[..., 10:14, 20:24] += 0.3
    noisy[..., 50:54, 50:54] += 0.3  # as much noise, where the model does not look

    heat = disagreement(lead, noisy, denoised, gradients=gradients)[0]

    row, column = brightest(heat)
    assert 8 <= row < 16
    assert 18 <= column < 26
    assert float(heat[44:60, 44:60].max()) < 1e-3 * float(heat.max())


@pytest.mark.parametrize("gradients", [True, False])
def test_it_is_dark_where_denoising_changes_nothing(gradients: bool) -> None:
    assert float(disagreement(lead, scans(), scans(), gradients=gradients).max()) == 0.0


@pytest.mark.parametrize("gradients", [True, False])
def test_each_image_has_a_map_of_its_own(gradients: bool) -> None:
    noisy = scans(3)
    noisy[1, :, 8:12, 8:12] += 0.3

    together = disagreement(lead, noisy, scans(3), gradients=gradients)

    assert together.shape == (3, SIDE, SIDE)
    assert not together.requires_grad
    assert torch.allclose(together[1], disagreement(lead, noisy[1:2], scans(3)[1:2], gradients=gradients)[0])
    assert float(together[0].max()) == float(together[2].max()) == 0.0


def test_what_no_map_can_be_drawn_of_is_refused() -> None:
    with pytest.raises(InputError, match="two batches of one shape"):
        disagreement(lead, scans(2), scans(1))
    with pytest.raises(InputError, match="not finite"):
        disagreement(lead, scans() * float("inf"), scans())
