"""Grey and colour come out of an .npz file in every layout that means one thing; the rest is refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from gateway.profile import Profile
from lab.data import DataError, laid_out, load, stored
from lab.development import descend, grey, harmless, noisy, simulate

COLOUR = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


def profile(channels: int) -> Profile:
    return Profile.from_toml(
        b'name="s"\nversion="1"\ntask="multiclass"\nclasses=["a","b"]\n[input]\nname="x"\nlayout="NCHW"\n'
        b"channels=%d\nsize=[6,8]\nrange=[0.0,1.0]\n" % channels
    )


def saved(folder: Path, images: NDArray[np.generic]) -> Path:
    labels, groups = np.zeros(len(images), np.int64), np.array(["p"] * len(images))
    np.savez(folder / "scans.npz", test_images=images, test_labels=labels, test_groups=groups)
    return folder / "scans.npz"


LAYOUTS = {
    "(N, H, W, 3)": (COLOUR, 3),
    "(N, 3, H, W)": (np.moveaxis(COLOUR, 3, 1), 3),
    "(N, H, W)": (GREY, 1),
    "(N, H, W, 1)": (GREY[..., None], 1),
    "(N, 1, H, W)": (GREY[:, None], 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_and_written_alike(tmp_path: Path, layout: str) -> None:
    images, channels = LAYOUTS[layout]
    path = saved(tmp_path, images)
    values = stored(path, "test", profile(3)).images
    expected = np.moveaxis(COLOUR, 3, 1) if channels == 3 else GREY[:, None]

    assert torch.equal(values, torch.from_numpy(expected.astype(np.float32)))
    assert np.array_equal(laid_out(values, images), images)
    shown = load(path, profile(3)).test.images
    assert torch.allclose(shown, values.expand(-1, 3, -1, -1) / 255)


REFUSED = {
    "which axis is that of the channels": np.zeros((4, 3, 8, 3), np.uint8),
    "not uint8": np.zeros((4, 6, 8, 4), np.uint8),
    r"must be uint8 .* not float32": np.zeros((4, 6, 8, 3), np.float32),
    r"must be uint8 .* not uint8 \(4, 8\)": np.zeros((4, 8), np.uint8),
    r"must be uint8 .* not uint8 \(4, 0, 8, 3\)": np.zeros((4, 0, 8, 3), np.uint8),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_may_mean_two_things_or_none_is_refused(tmp_path: Path, said: str) -> None:
    with pytest.raises(DataError, match=said):
        load(saved(tmp_path, REFUSED[said]), profile(3))


def test_colour_for_a_model_of_grey_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="test_images are in colour"):
        load(saved(tmp_path, COLOUR), profile(1))


def test_what_is_simulated_on_grey_in_three_channels_stays_grey() -> None:
    """As any file of it would be: else detectors learn to see a colour that no attacker can store."""
    clean = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(-1, 3, -1, -1)
    weights = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def model(images: Tensor) -> Tensor:
        return torch.einsum("kchw,nchw->nk", weights, images - 0.5)

    found = simulate(model, clean, device=torch.device("cpu"), seed=2)
    descended, _ = descend(model, clean, levels=8, steps=3, device=torch.device("cpu"), seed=2)
    assert len(found.images) >= 1
    for changed in (found.images, descended, harmless(clean, seed=2), noisy(clean, seed=2)):
        assert changed.shape[1:] == clean.shape[1:]
        assert grey(changed)
    assert not grey(noisy(torch.rand(2, 3, 16, 16), seed=2))
