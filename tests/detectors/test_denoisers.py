"""Every denoiser keeps what every denoiser promises, and those that learn serve what they were taught."""

import math

import pytest
import torch
from torch import Tensor

from detectors.denoisers.bilateral import Bilateral
from detectors.denoisers.denoiser import Denoiser
from detectors.denoisers.diffusion import SIGMA_MIN, Diffusion
from detectors.denoisers.dncnn import DnCNN, StableDnCNN
from detectors.denoisers.hgd import HGD
from detectors.denoisers.jpeg import JpegDenoiser
from detectors.denoisers.learned import Learned
from detectors.denoisers.lowpass import LowPass
from detectors.denoisers.median import Median
from detectors.denoisers.nonlocal_means import NonLocalMeans
from detectors.denoisers.registry import KINDS, restored
from detectors.denoisers.total_variation import TotalVariation
from detectors.denoisers.training import guidance, stability
from detectors.denoisers.unet import StableUNet, UNetDenoiser
from detectors.denoisers.wavelet import Wavelet
from detectors.denoisers.windowed import Windowed
from detectors.errors import ArtefactError, InputError, NotFittedError
from detectors.filters import gaussian
from detectors.models.outputs import Task
from detectors.neighbours.jpeg import Jpeg
from detectors.observation import LEVEL, Span

CPU = torch.device("cpu")
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
UNIT = Span((0.0,), (1.0,))
SIGNED = Span((-1.0,), (1.0,))
LEARNED = ("dncnn", "dncnn_stability", "unet", "unet_stability", "hgd", "diffusion")


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def smooth(count: int, size: int, *, seed: int = 4) -> Tensor:
    return gaussian(images(count, 1, size, size, seed=seed), 3.0)


def noise(like: Tensor, levels: float, *, seed: int = 2) -> Tensor:
    return levels * LEVEL * torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=like.dtype)


def lessons() -> tuple[Tensor, Tensor]:
    """Small clean images, and the same with four levels up or down in each pixel."""
    clean = smooth(16, 16)
    return clean, clean + 4 * LEVEL * (images(*clean.shape, seed=7) - 0.5).sign()


@pytest.fixture(scope="module")
def denoisers() -> dict[str, Denoiser]:
    """Every kind, for a model that takes -1 to 1; those that learn have seen a few small images."""
    clean, attacked = lessons()
    goals = {
        "dncnn_stability": stability(_model), "unet_stability": stability(_model), "hgd": guidance(_features)
    }  # fmt: skip
    made: dict[str, Denoiser] = {}
    for name, kind in KINDS.items():
        if issubclass(kind, Windowed):
            made[name] = kind(SIGNED)
        elif issubclass(kind, Learned):
            made[name] = kind.fit(clean, attacked, span=SIGNED, seed=0, device=CPU, goal=goals.get(name))
        elif issubclass(kind, Diffusion):
            made[name] = kind.fit(clean, span=SIGNED, seed=0, device=CPU)
        else:
            made[name] = kind()
    return made


def _features(unit: Tensor) -> Tensor:
    """(N, 2, H, W): what a model might look at, the mean of a place and the slope across it."""
    blurred = gaussian(unit, 1.0)
    return torch.cat([blurred, (blurred.roll(1, 3) - blurred.roll(-1, 3)) * 4], 1)


def _model(unit: Tensor) -> Tensor:
    """(N, 2) logits of whether an image is lighter on the left."""
    half = unit.shape[3] // 2
    lead = unit[..., :half].mean((1, 2, 3)) - unit[..., half:].mean((1, 2, 3))
    return torch.stack([20 * lead, -20 * lead], 1)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_shape_type_device_and_range_are_kept(denoisers: dict[str, Denoiser], name: str, device: str) -> None:
    state = {key: value.to(device) for key, value in denoisers[name].state().items()}
    denoise = restored(name, KINDS[name].version, state)
    for shape in ((2, 1, 17, 9), (1, 1, 1, 1), (1, 1, 1, 5), (3, 1, 2, 33), (1, 1, 40, 24)):
        for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
            batch = SIGNED.from_unit(images(*shape)).to(device, dtype)

            out = denoise(batch)

            assert (out.shape, out.dtype, out.device) == (batch.shape, dtype, batch.device)
            assert -1 <= float(out.min()) <= float(out.max()) <= 1


@pytest.mark.parametrize("name", KINDS)
def test_company_makes_no_difference(denoisers: dict[str, Denoiser], name: str) -> None:
    batch = SIGNED.from_unit(images(5, 1, 24, 24))

    together = denoisers[name](batch)
    alone = torch.cat([denoisers[name](one[None]) for one in batch])

    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_the_gradient_is_the_true_one_or_declared(denoisers: dict[str, Denoiser], name: str) -> None:
    """Where no surrogate is declared, the slope along a direction is what differences say."""
    leaf = (smooth(1, 12) * 2 - 1).double().add(noise(smooth(1, 12), 2.0)).requires_grad_()
    way = noise(smooth(1, 12), 255.0, seed=3).double()

    (gradient,) = torch.autograd.grad((denoisers[name](leaf) * way).sum(), leaf)

    assert float(gradient.abs().sum()) > 0
    if denoisers[name].surrogate is None and name not in LEARNED:  # those compute in 32 bits: too coarse to difference
        step = 1e-6 * noise(leaf, 255.0, seed=5)
        with torch.no_grad():
            rise = ((denoisers[name](leaf + step) - denoisers[name](leaf - step)) / 2 * way).sum()
        assert float((gradient * step).sum()) == pytest.approx(float(rise), rel=1e-3)


def test_the_one_surrogate_is_the_identity_of_the_quantiser(denoisers: dict[str, Denoiser]) -> None:
    leaf = images(1, 1, 16, 16).requires_grad_()

    (gradient,) = torch.autograd.grad(denoisers["jpeg"](leaf).sum(), leaf)

    assert {name: each.surrogate for name, each in denoisers.items() if each.surrogate} == {"jpeg": "identity"}
    assert torch.equal(gradient, torch.ones_like(leaf))


@pytest.mark.parametrize("name", sorted(set(KINDS) - set(LEARNED)))
def test_what_is_even_stays(denoisers: dict[str, Denoiser], name: str) -> None:
    """Filters leave a constant image alone, JPEG to half a step of its table."""
    for value in (0.0, 0.37, 1.0):
        flat = SIGNED.from_unit(torch.full((1, 1, 20, 20), value))

        off = (denoisers[name](flat) - flat).abs().max() / (2 * LEVEL)

        assert float(off) <= (0.501 if name == "jpeg" else 1e-3)


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"jpeg"}))
def test_a_ramp_of_16_bits_keeps_its_values(denoisers: dict[str, Denoiser], name: str) -> None:
    """All 65,536 of them, in order but for the ends, which a mirror or an edge may bend; 8 bits would keep 256."""
    ramp = torch.linspace(-1, 1, 65536, dtype=torch.float64).expand(1, 1, 4, -1)

    out = denoisers[name](ramp)[0, 0, 1].unique()

    assert len(out) > (0.99 * 65536 if name not in LEARNED else 0.9 * 65536)


def test_jpeg_rounds_coefficients_and_not_pixels() -> None:
    """A slow ramp comes out as stairs, as of any JPEG; a scan's texture has far more values than 8 bits have."""
    texture = smooth(1, 96, seed=8)

    assert len(JpegDenoiser(UNIT)(texture).unique()) > 4096
    assert len((JpegDenoiser(UNIT)(texture) * 255).round().unique()) <= 256
    assert torch.equal(JpegDenoiser(UNIT, 50)(texture), Jpeg(50)(texture))


@pytest.mark.parametrize("name", KINDS)
def test_a_state_gives_the_same_denoiser_again(denoisers: dict[str, Denoiser], name: str) -> None:
    batch = SIGNED.from_unit(images(2, 1, 20, 20))

    again = restored(name, denoisers[name].version, denoisers[name].state())

    assert type(again) is type(denoisers[name])
    assert again.name == name
    assert torch.equal(again(batch), denoisers[name](batch))


def test_settings_are_kept_in_the_state() -> None:
    again = Bilateral.from_state(Bilateral(UNIT, sigma_levels=3.0, sigma_pixels=2.0, radius=1).state())

    assert again == Bilateral(UNIT, sigma_levels=3.0, sigma_pixels=2.0, radius=1)
    assert isinstance(again.radius, int)


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"median"}))
def test_a_state_with_a_part_missing_is_refused(denoisers: dict[str, Denoiser], name: str) -> None:
    state = denoisers[name].state()
    del state[sorted(state)[0]]

    with pytest.raises(NotFittedError, match=name):
        restored(name, denoisers[name].version, state)
    with pytest.raises(ArtefactError, match="version 0"):
        restored(name, "0", state)
    with pytest.raises(ArtefactError, match="no denoiser is called"):
        restored(f"{name}!", "1", state)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (torch.zeros(1, 8, 8), "must be"),
        (torch.zeros(0, 1, 8, 8), "no empty axis"),
        (torch.zeros(1, 1, 0, 8), "no empty axis"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int32), "floating type"),
        (torch.full((1, 1, 8, 8), torch.nan), "not finite"),
        (torch.full((1, 1, 8, 8), torch.inf), "not finite"),
    ],
)
def test_what_is_no_image_is_refused(denoisers: dict[str, Denoiser], name: str, batch: Tensor, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        denoisers[name](batch)


def test_other_channels_and_empty_settings_are_refused(denoisers: dict[str, Denoiser]) -> None:
    for name in set(KINDS) - {"median"}:
        with pytest.raises(InputError, match="3 channels"):
            denoisers[name](torch.zeros(1, 3, 8, 8))
    with pytest.raises(InputError, match="sigma_levels"):
        Bilateral(UNIT, sigma_levels=0.0)
    with pytest.raises(InputError, match="sigma"):
        denoisers["diffusion"].at(SIGMA_MIN / 2)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [DnCNN, UNetDenoiser, HGD, StableDnCNN, StableUNet])
def test_one_scan_teaches_nothing(kind: type[Learned]) -> None:
    with pytest.raises(InputError, match="too few"):
        kind.fit(images(1, 1, 8, 8), images(1, 1, 8, 8), span=UNIT, seed=0, device=CPU)
    with pytest.raises(InputError, match="too few"):
        Diffusion.fit(images(1, 1, 8, 8), span=UNIT, seed=0, device=CPU)


@pytest.mark.parametrize("name", ["dncnn", "unet", "diffusion"])
def test_networks_take_noise_from_what_they_were_trained_on(denoisers: dict[str, Denoiser], name: str) -> None:
    fresh = smooth(8, 16, seed=9)
    levels = 8.0 if name == "diffusion" else 4.0
    noisy = fresh + noise(fresh, levels)

    error = (SIGNED.to_unit(denoisers[name](SIGNED.from_unit(noisy))) - fresh).square().mean()

    assert error < 0.5 * (noisy - fresh).square().mean()


@pytest.mark.parametrize("task", Task)
def test_stability_asks_for_the_models_own_answer(task: Task) -> None:
    """The loss falls as the restored image nears one that the model answers as it does the clean one."""
    shape = (2, 2, 6, 6) if task is Task.SEGMENTATION else (2, 2)
    weights = images(*shape[1:], 36, seed=6) - 0.5

    def model(unit: Tensor) -> Tensor:
        return (unit.flatten(1) @ weights.reshape(-1, 36).T).reshape(len(unit), *shape[1:])

    clean, other = images(2, 1, 6, 6), 1 - images(2, 1, 6, 6)
    loss = stability(model, task).loss

    assert float(loss(clean, clean)) < float(loss(other, clean))


def test_guidance_lets_pixels_differ_where_the_model_does_not_look() -> None:
    """Fine checks that the model's features blur away cost little; the same energy in a slope costs much."""
    clean = smooth(2, 16)
    rows, columns = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    checks = ((rows + columns) % 2 * 2.0 - 1) * 0.05
    slope = (columns / 15 - 0.5) * 0.05 * math.sqrt(12)
    loss = guidance(_features).loss

    assert float(loss(clean, clean)) == 0
    assert 10 * float(loss(clean + checks, clean)) < float(loss(clean + slope, clean))


def test_guided_and_stable_networks_serve_the_model(denoisers: dict[str, Denoiser]) -> None:
    """On scans that they know, each gets nearer to what it was asked for than the attacked image is."""
    clean, attacked = lessons()
    wanted = {"hgd": guidance(_features), "unet_stability": stability(_model), "dncnn_stability": stability(_model)}
    for name, goal in wanted.items():
        found = SIGNED.to_unit(denoisers[name](SIGNED.from_unit(attacked)))

        assert float(goal.loss(found, clean)) < float(goal.loss(attacked, clean)), name


def test_settings_in_levels_mean_the_same_whatever_the_model_takes() -> None:
    batch = images(1, 1, 24, 24).double()
    for kind in (Bilateral, NonLocalMeans, TotalVariation, Wavelet, JpegDenoiser, LowPass):
        unit, signed = kind(UNIT)(batch), SIGNED.to_unit(kind(SIGNED)(SIGNED.from_unit(batch)))

        assert torch.allclose(unit, signed, atol=1e-9), kind.name
    assert torch.allclose(Median()(batch), SIGNED.to_unit(Median()(SIGNED.from_unit(batch))), atol=1e-12)
