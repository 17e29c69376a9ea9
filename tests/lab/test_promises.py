"""A detector of another package that breaks its contract is refused by name before a fit begins."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from detectors import registry
from lab.cli import main
from lab.promises import promising

CODE = """
from detectors.detector import Score
from detectors.errors import InputError
from detectors.observation import Needs

class Shade:
    name, version, needs = "shade", "1", Needs()
    def __init__(self, centre):
        self.centre = centre
    @classmethod
    def fit(cls, material):
        if len(material.clean) < 20:
            raise InputError("too few")
        return cls(material.clean.mean()[None])
    def score(self, seen):
        values = seen.images.mean((1, 2, 3)) - self.centre
        return Score(self.name, RETURNED)
    def state(self):
        return {"centre": self.centre}
    @classmethod
    def from_state(cls, state):
        return cls(state["centre"])
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, for a package and its metadata."""
    folder = tmp_path / "site-packages"
    metadata = folder / "shade_detector-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: shade-detector\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\nshade = shade_detector:Shade\n")
    monkeypatch.syspath_prepend(folder)
    registry.offered.cache_clear()
    yield folder
    registry.offered.cache_clear()
    sys.modules.pop("shade_detector", None)


def fit(site: Path, out: Path) -> Result:
    given = ["--model", site / "model.onnx", "--profile", site / "profile.toml", "--data", site / "data.npz"]
    words = ["fit", *given, "--out", out, "--detectors", "shade"]
    return CliRunner().invoke(main, [str(each) for each in words])


@pytest.mark.parametrize(
    ("returned", "promise"),
    [
        ("values[1:]", "one finite score an image"),
        ("values * float('nan')", "one finite score an image"),
        ("values.detach()", "loses the graph"),
        ("values.view(2, 2, 2)", "invalid for input"),
    ],
)
def test_a_broken_contract_is_named_before_any_work(
    site: Path, place: Path, tmp_path: Path, returned: str, promise: str
) -> None:
    (place / "shade_detector.py").write_text(CODE.replace("RETURNED", returned))

    result = fit(site, tmp_path / "out")

    assert result.exit_code == 2
    assert "detector shade, of another package, breaks its contract" in result.stderr
    assert promise in result.stderr
    assert "hardening" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_detector_that_keeps_its_contract_may_be_fitted(place: Path) -> None:
    (place / "shade_detector.py").write_text(CODE.replace("RETURNED", "values"))

    promising([*registry.DEFAULT, "shade"])
