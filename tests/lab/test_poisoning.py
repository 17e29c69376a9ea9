"""Poisoned calibration is measured by one command, which goes on where it was cut short."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from click.testing import CliRunner
from torch import Tensor

from detectors.artifact import MANIFEST
from lab import fitting
from lab.poisoning import MIRRORED, Pools, main, measure

NAMES = ("twinM", "twinS", "fusion", "gradient_residual")


def scores(count: int, seed: int, by: float = 0.0) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.empty(count).exponential_(generator=draws) + by for name in NAMES}


def test_poison_blinds_the_detectors_until_it_is_taken_out(fitted: fitting.Fitted) -> None:
    pools = Pools(
        {"a": scores(260, 3), MIRRORED: scores(260, 9), "b": scores(400, 4), "test": scores(500, 5)},
        {
            "a": scores(30, 6, 25.0),
            MIRRORED: scores(30, 10, 25.0),
            "b": scores(30, 7, 25.0),
            "test": scores(60, 8, 25.0),
        },
    )

    rows = {(row.place, row.share): row for row in measure(fitted.ensemble, pools, 0.01, draws=5)}

    assert rows["none", 0.0].tpr == 1.0
    assert rows["B", 0.05].tpr < 0.5
    for (place, share), row in rows.items():
        assert row.tpr_after == 1.0, place
        assert row.named == (1.0 if share else 0.0)
        assert row.wrongly <= 0.2
        assert row.fpr_after <= 0.03


def test_one_command_measures_and_takes_up_what_it_found(site: Path, fitted: fitting.Fitted, tmp_path: Path) -> None:
    given = ["--model", site / "model.onnx", "--profile", site / "profile.toml", "--detectors", site / "out"]
    given += ["--data", site / "data.npz", "--work", tmp_path / "work", "--out", tmp_path / "poison.md"]
    given += ["--eps", "8", "--steps", "6", "--attacked", "16", "--draws", "2"]

    first = CliRunner().invoke(main, [str(each) for each in given], catch_exceptions=False)
    text = (tmp_path / "poison.md").read_text()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    second = CliRunner().invoke(main, [str(each) for each in given], catch_exceptions=False)

    assert first.exit_code == second.exit_code == 0
    assert len(kept) == 8
    told = hashlib.sha256((site / "out" / MANIFEST).read_bytes()).hexdigest()  # other detectors score anew
    assert {path.parent.name.split("-")[0] for path in kept} == {told[:16]}
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.safetensors")}
    assert (tmp_path / "poison.md").read_text() == text
    assert (tmp_path / "poison.png").stat().st_size > 10_000
    assert text.count("| B | ") == 3
