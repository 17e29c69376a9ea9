"""What attacks do inside a model is measured by one command, which goes on where it was cut short."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

from gateway.profile import Profile
from lab import data, fitting
from lab.data import StoredScans
from lab.inside import main, measure


def test_an_attack_moves_the_last_layer_further_than_noise_and_towards_another_class(
    site: Path, fitted: fitting.Fitted
) -> None:
    profile = Profile.load(site / "profile.toml")
    scans = data.stored(site / "data.npz", "test", profile)
    some = StoredScans(scans.images[:40], scans.labels[:40])

    small, large = (measure(fitted.ensemble.probe, profile, some, level, 10) for level in (1.0, 8.0))

    assert large["success"] > 0.5
    assert large["moved"]["attack"][-1] > large["moved"]["noise"][-1] > 0
    assert small["moved"]["attack"][-1] < large["moved"]["attack"][-1]
    assert small["own"]["clean"] == large["own"]["clean"]
    assert large["own"]["attack"][-1] < large["own"]["clean"][-1]
    assert large["labels"] == {"attack": None, "noise": None}  # two classes: there is nothing to correlate


def test_one_command_writes_the_document_and_takes_up_what_it_found(
    site: Path, fitted: fitting.Fitted, tmp_path: Path
) -> None:
    given = ["--model", site / "model.onnx", "--profile", site / "profile.toml", "--detectors", site / "out"]
    given += ["--data", site / "data.npz", "--work", tmp_path, "--out", tmp_path / "inside.md"]
    given += ["--images", "8", "--steps", "3"]

    CliRunner().invoke(main, [str(each) for each in given], catch_exceptions=False)
    text = (tmp_path / "inside.md").read_text()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    again = CliRunner().invoke(main, [str(each) for each in given], catch_exceptions=False)

    assert again.exit_code == 0
    assert len(kept) == 4
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert (tmp_path / "inside.md").read_text() == text
    assert text.count("| layer |") == 4
    assert (tmp_path / "inside.png").stat().st_size > 10_000
