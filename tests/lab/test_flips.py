"""How often common perturbations flip an answer is measured by one command, which goes on where it was cut short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from gateway.profile import Profile
from lab import data, fitting
from lab.flips import FRAMES, PERTURBATIONS, main, measure


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_perturbation_begins_small_and_keeps_its_shape(name: str) -> None:
    images = torch.rand(2, 1, 24, 24, generator=torch.Generator().manual_seed(0))
    change = PERTURBATIONS[name][1]

    apart = [float((change(images, share) - images).abs().mean()) for share in (0.1, 1.0)]

    assert change(images, 1.0).shape == images.shape
    assert apart[0] < apart[1]


def test_flips_are_counted_between_frames_and_scans(site: Path, fitted: fitting.Fitted) -> None:
    profile = Profile.load(site / "profile.toml")
    scans = data.stored(site / "data.npz", "test", profile).images[:10]

    found = measure(fitted.ensemble, profile, scans, "blur", 0.01)

    assert len(found["changed"]) == FRAMES + 1
    assert found["changed"][0] == 0.0
    assert max(found["changed"]) <= found["ever"]["rate"]
    assert found["ever"]["rate"] / FRAMES <= found["rate"] <= found["ever"]["rate"]
    assert found["rate"] > 0  # the stripes that tell these classes apart do not outlive a blur of 1.5 pixels


def test_one_command_writes_the_document_and_takes_up_what_it_found(
    site: Path, fitted: fitting.Fitted, tmp_path: Path
) -> None:
    given = ["--model", site / "model.onnx", "--profile", site / "profile.toml", "--detectors", site / "out"]
    given += ["--data", site / "data.npz", "--work", tmp_path, "--out", tmp_path / "flips.md", "--images", "6"]

    CliRunner().invoke(main, [str(each) for each in given], catch_exceptions=False)
    (kept,) = tmp_path.rglob("blur.json")
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"rate": 0.1234}))
    again = CliRunner().invoke(main, [str(each) for each in given], catch_exceptions=False)

    assert again.exit_code == 0
    text = (tmp_path / "flips.md").read_text()
    assert "| blur | to 1.5 pixels | 12.34%" in text
    assert all(f"| {name} | " in text for name in PERTURBATIONS)
    assert (tmp_path / "flips.png").stat().st_size > 10_000
