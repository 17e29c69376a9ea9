"""What denoisers are worth is measured beside no denoiser, and against attackers who know of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

from detectors.denoisers.lowpass import LowPass
from detectors.denoisers.registry import KINDS
from gateway.profile import Profile
from lab import data, denoiser_results, denoising
from lab.cli import main
from lab.training import export

SIDE = 24
PROFILE = b"""
name = "stripes"
version = "1"
task = "multiclass"
classes = ["plain", "striped"]
[input]
name = "image"
layout = "NCHW"
channels = 1
size = [24, 24]
range = [-1.0, 1.0]
"""


class Stripes(nn.Module):
    """Tells stripes of three pixels by their energy, and lets itself be fooled by a little of those of one."""

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.Conv2d(1, 4, (1, 7), padding=(0, 3), padding_mode="replicate", bias=False)
        broad = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0, 0.0]) / 3
        narrow = torch.tensor([0.0, 0.0, -1.0, 2.0, -1.0, 0.0, 0.0])
        self.edges.weight.data = torch.stack([broad, -broad, narrow, -narrow]).view(4, 1, 1, 7)
        self.head = nn.Linear(4, 2)
        self.head.weight.data = torch.tensor([[-40.0, -40.0, -20.0, -20.0], [40.0, 40.0, 20.0, 20.0]])
        self.head.bias.data = torch.tensor([1.8, -1.8])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.edges(images)).mean((2, 3)))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its profile, and data."""
    folder = tmp_path_factory.mktemp("denoised")
    (folder / "profile.toml").write_bytes(PROFILE)
    (folder / "model.onnx").write_bytes(export(Stripes(), Profile.load(folder / "profile.toml")))
    rng = np.random.default_rng(0)
    arrays = {}
    for split in ("train", "val", "test"):
        labels = np.arange(40) % 2
        stripes = 12 * (np.arange(SIDE) // 3 % 2 * 2 - 1) * labels[:, None, None]
        images = rng.uniform(60, 180, (40, 1, 1)) + stripes + rng.normal(0, 1, (40, SIDE, SIDE))
        arrays |= {f"{split}_images": images.round().clip(0, 255).astype(np.uint8), f"{split}_labels": labels}
        arrays |= {f"{split}_groups": np.array([f"{split}{k}" for k in range(40)])}
    np.savez(folder / "data.npz", **arrays)
    return folder


def run(site: Path, *options: object) -> Result:
    given = ["--model", site / "model.onnx", "--profile", site / "profile.toml", "--data", site / "data.npz"]
    return CliRunner().invoke(main, ["denoisers", *map(str, [*given, *options])], catch_exceptions=False)


def test_the_command_measures_every_denoiser_beside_none(site: Path) -> None:
    result = run(site, "--denoiser", "jpeg", "--denoiser", "lowpass", "--attacked", 12, "--json")

    assert result.exit_code == 0, result.stderr
    none, jpeg, lowpass = json.loads(result.stdout)
    assert [each["name"] for each in (none, jpeg, lowpass)] == ["none", "jpeg", "lowpass"]
    assert none["clean"]["rate"] > 0.95
    assert none["oblivious"]["4"]["rate"] < 0.6
    assert none["oblivious"] == none["informed"]
    assert lowpass["oblivious"]["4"]["rate"] > 0.9
    assert (none["surrogate"], jpeg["surrogate"]) == (None, "identity")
    assert all(each["n"] == 12 for row in (none, jpeg, lowpass) for each in row["oblivious"].values())
    assert set(jpeg["milliseconds"]) == {"1", "16"}


def test_an_attacker_who_knows_of_the_denoiser_does_better(site: Path) -> None:
    """Through the filter's gradient, or its surrogate, what it takes from an attack is won back."""
    profile = Profile.load(site / "profile.toml")
    scans = data.load(site / "data.npz", profile)
    model = (site / "model.onnx").read_bytes()
    bench = denoising.bench(model, profile, torch.device("cpu"), 0, lambda _stage, _share: None)
    made = denoising.make(bench, ("jpeg", "wavelet", "lowpass"), scans.train.images)

    _, jpeg, wavelet, lowpass = denoising.measure(bench, made, scans.test, attacked=24, levels=(4, 8))

    for found, level in ((jpeg, 4), (wavelet, 4), (lowpass, 8)):
        assert found.informed[level]["rate"] < found.oblivious[level]["rate"] - 0.1, found.name


def test_what_a_denoiser_spoils_by_itself_is_not_won_back_by_the_attack(site: Path) -> None:
    """An informed attacker leads away from what is right, also where the denoised clean scan is read wrongly."""
    profile = Profile.load(site / "profile.toml")
    scans = data.load(site / "data.npz", profile)
    bench = denoising.bench(
        (site / "model.onnx").read_bytes(), profile, torch.device("cpu"), 0, lambda _stage, _share: None
    )
    blind = {"lowpass": LowPass(bench.span, sigma_pixels=1.7)}  # just enough to miss the stripes

    _, found = denoising.measure(bench, blind, scans.test, attacked=40, levels=(4,))

    assert 0.4 < found.clean["rate"] < 0.6
    assert found.informed[4]["rate"] <= found.clean["rate"]


def test_all_that_learn_are_trained_towards_their_own_goal(site: Path) -> None:
    profile = Profile.load(site / "profile.toml")
    scans = data.load(site / "data.npz", profile)
    told: set[str] = set()
    bench = denoising.bench(
        (site / "model.onnx").read_bytes(), profile, torch.device("cpu"), 0, lambda stage, _share: told.add(stage)
    )

    made = denoising.make(bench, ("hgd", "dncnn_stability", "median"), scans.train.images)

    assert list(made) == ["hgd", "dncnn_stability", "median"]
    assert told == {"attacking for the denoisers", "training hgd", "training dncnn_stability"}
    unit = bench.span.to_unit(scans.test.images)
    with torch.no_grad():
        answers = bench.model(bench.span.to_unit(made["hgd"](scans.test.images))).argmax(1)
        assert float((answers == bench.model(unit).argmax(1)).float().mean()) > 0.9


def test_a_denoiser_that_there_is_not_is_refused_before_any_work(site: Path) -> None:
    stranger, twice = run(site, "--denoiser", "magic"), run(site, "--denoiser", "jpeg", "--denoiser", "jpeg")

    assert (stranger.exit_code, twice.exit_code) == (2, 2)
    assert "magic" in stranger.stderr
    assert all(name in stranger.stderr for name in KINDS)
    assert "twice" in twice.stderr


def test_a_model_of_several_labels_is_refused(site: Path, tmp_path: Path) -> None:
    (tmp_path / "profile.toml").write_bytes(PROFILE.replace(b"multiclass", b"multilabel"))
    profile = Profile.load(tmp_path / "profile.toml")

    with pytest.raises(data.DataError, match="multilabel"):
        denoising.bench(b"", profile, torch.device("cpu"), 0, lambda _stage, _share: None)


def test_the_report_shows_every_row(site: Path) -> None:
    result = run(site, "--denoiser", "median", "--attacked", 4)
    rate = {"rate": 0.5, "low": 0.4, "high": 0.6, "n": 40}
    effect = denoising.Effect("median", None, rate, {1: rate}, {1: rate}, {1: 2.0, 16: 1.0})

    assert "none" in result.stdout
    assert "median" in result.stdout
    assert "| median | 50.0 | 50.0 | 50.0 | 2 | 1 |" in denoiser_results.report([effect], "make denoisers", b"")
