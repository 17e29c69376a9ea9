"""A detector of another package is found, fitted, written, loaded and refused as the house's own are."""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from detectors import registry
from detectors.artifact import Artefact
from detectors.calibration import ConformalCalibration, ParetoTail, TailCalibration
from detectors.detector import Score
from detectors.ensemble import ROBUST, Channel, Ensemble, Member, join
from detectors.errors import ArtefactError, DetectorError, InputError
from detectors.material import Material
from detectors.methods.twins import COPIED_TWIN
from detectors.observation import Needs, Observation, Signal
from detectors.testing import check_method, small_material

PROFILE = "ab" * 32
DOCUMENTED = re.findall(
    r"```python\n(.*?)```", (Path(__file__).parents[2] / "docs" / "plugins.md").read_text(), re.DOTALL
)
BRIGHTNESS, ITS_TEST = DOCUMENTED
"""What the documentation has its readers copy."""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with a package and its metadata, as an installer leaves them."""
    place = tmp_path / "site-packages"
    (place / "brightness_detector-1.0.dist-info").mkdir(parents=True)
    (place / "brightness_detector.py").write_text(BRIGHTNESS)
    (place / "brightness_detector-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: brightness-detector\nVersion: 1.0\n"
    )
    offer(place, "brightness = brightness_detector:Brightness")
    monkeypatch.syspath_prepend(place)
    registry.offered.cache_clear()
    yield place
    registry.offered.cache_clear()
    sys.modules.pop("brightness_detector", None)


def offer(place: Path, line: str) -> None:
    """Write the entry point, and forget what was read before."""
    folder = place / "brightness_detector-1.0.dist-info"
    (folder / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{line}\n")
    registry.offered.cache_clear()


@pytest.fixture
def written(installed: Path, tmp_path: Path, site: Any) -> tuple[Path, bytes]:
    """An artefact with the plug-in beside one of the house's own detectors."""
    detectors = [registry.method(name).fit(site.material) for name in (COPIED_TWIN, "brightness")]
    scores = {each.name: site.scores(each, site.material.clean) for each in detectors}
    members = [
        Member(
            each, TailCalibration.fit(scores[each.name]), ConformalCalibration.fit(scores[each.name], 0.01),
            ROBUST if each.name == COPIED_TWIN else None,
        )
        for each in detectors
    ]  # fmt: skip
    channels = [Channel(ROBUST, 1.0, ParetoTail.fit(members[0].tail.surprise(scores[COPIED_TWIN])))]
    whole = ConformalCalibration.fit(join(members, channels, scores), 0.01)
    names = "created scanward torch data_sha256 n_fit n_a n_b fpr precision gradients conversion_max_abs_diff measured"
    facts: dict[str, Any] = dict.fromkeys(names.split(), 0)
    facts |= {"model_sha256": hashlib.sha256(site.model).hexdigest(), "profile_sha256": PROFILE}
    ensemble = Ensemble(site.probe, members, channels, whole)
    return tmp_path / "artefact", Artefact.write(tmp_path / "artefact", ensemble, {}, facts)


def test_an_installed_plugin_keeps_the_contract(installed: Path, site: Any) -> None:
    assert registry.offered() == {"brightness": "brightness_detector:Brightness"}

    detector = check_method(registry.method("brightness"), site.material)

    assert detector.name == "brightness"


def test_what_is_documented_as_its_test_passes(installed: Path) -> None:
    names: dict[str, Any] = {}

    exec(ITS_TEST, names)  # noqa: S102 - the page's own text

    names["test_brightness_keeps_the_contract"]()


def test_an_artefact_with_a_plugin_is_loaded_again(written: tuple[Path, bytes], site: Any) -> None:
    loaded = Artefact.load(*written, site.model, PROFILE, torch.device("cpu"))

    found = loaded.ensemble.examine(site.probe.span.from_unit(site.test[:4]))

    expected = (site.test[:4].mean((1, 2, 3)) - site.material.clean.mean()).abs()
    assert torch.allclose(found.scores["brightness"], expected, atol=1e-6)
    assert loaded.manifest["detectors"]["brightness"]["weight"] == 0


def gone(place: Path) -> None:
    (place / "brightness_detector-1.0.dist-info" / "entry_points.txt").unlink()
    registry.offered.cache_clear()


def without_code(place: Path) -> None:
    sys.modules.pop("brightness_detector", None)
    (place / "brightness_detector.py").write_text("raise OSError('no licence')\n")


def newer(place: Path) -> None:
    sys.modules.pop("brightness_detector", None)
    (place / "brightness_detector.py").write_text(BRIGHTNESS.replace('"1", Needs', '"2.0", Needs'))


LOST: dict[str, tuple[Callable[[Path], None], str]] = {
    "uninstalled": (gone, "no detector is called 'brightness'"),
    "offered under another name": (
        lambda place: offer(place, "lightness = brightness_detector:Brightness"),
        "no detector is called 'brightness'",
    ),
    "another one under its name": (
        lambda place: offer(place, "brightness = detectors.methods.mgm:ClassGaussian"),
        "offers 'mgm' as 'brightness'",
    ),
    "fails to import": (without_code, "cannot be imported: no licence"),
    "another version": (newer, "fitted by version 1, not 2.0"),
}


@pytest.mark.parametrize("case", LOST)
def test_an_artefact_whose_plugin_is_not_the_same_is_refused(
    installed: Path, written: tuple[Path, bytes], site: Any, case: str
) -> None:
    change, sentence = LOST[case]
    change(installed)

    with pytest.raises(ArtefactError, match=sentence):
        Artefact.load(*written, site.model, PROFILE, torch.device("cpu"))


def test_a_plugin_cannot_take_the_name_of_one_of_ours(installed: Path) -> None:
    offer(installed, "mgm = brightness_detector:Brightness")

    assert registry.offered() == {}
    assert registry.method("mgm") is registry.OURS["mgm"]


def test_a_plugin_is_imported_only_when_it_is_asked_for(installed: Path) -> None:
    assert "brightness" in registry.offered()
    assert "brightness_detector" not in sys.modules

    registry.method("brightness")

    assert "brightness_detector" in sys.modules


class Careless:
    """A method that breaks one promise at a time."""

    name, version, needs = "careless", "1", Needs(frozenset({Signal.FEATURES}))
    fits = 0
    fault = ""

    def __init__(self, centre: Tensor) -> None:
        self._centre = centre

    @classmethod
    def fit(cls, material: Material) -> Careless:
        cls.fits += 1
        if cls.fault == "blames nobody" and len(material.clean) < 2:
            raise ValueError("too few")
        if cls.fault != "takes anything" and len(material.clean) < 20:
            raise InputError("too few")
        centre = material.clean.mean()[None]
        if cls.fault == "forgets":
            centre = centre + cls.fits
        if cls.fault == "marks its exam":
            material.benign.add_(0.01)
        return cls(centre)

    def score(self, seen: Observation) -> Score:
        return Score(self.name, seen.images.mean((1, 2, 3)) - self._centre)

    def state(self) -> dict[str, Tensor]:
        centre = self._centre.clone().requires_grad_(self.fault == "drags its graph along")
        return {"centre": centre}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Careless:
        return cls(state["centre"])


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("forgets", "another after it was fitted again"),
        ("marks its exam", "changes the material"),
        ("takes anything", "without a word"),
        ("blames nobody", "raises ValueError"),
        ("drags its graph along", "no plain tensor"),
    ],
)
def test_a_broken_promise_of_a_method_is_named(
    site: Any, monkeypatch: pytest.MonkeyPatch, fault: str, sentence: str
) -> None:
    monkeypatch.setattr(Careless, "fault", fault)
    material = Material(
        site.material.clean[:40], site.material.benign[:40].clone(), site.material.attacked, site.material.sources,
        site.probe, 0,
    )  # fmt: skip

    with pytest.raises(DetectorError, match=sentence):
        check_method(Careless, material)


def test_a_method_that_keeps_every_promise_passes(site: Any) -> None:
    assert check_method(Careless, site.material).name == "careless"


@pytest.mark.parametrize("name", ["twinM", "mgm", "lid", "fusion", "ml_loo", "explanation_gradient", "noise_residual"])
def test_what_outsiders_check_on_is_enough_for_every_signal(name: str) -> None:
    """The material that needs no data set: ours keep their promises on it, too."""
    assert check_method(registry.method(name), small_material()).name == name
