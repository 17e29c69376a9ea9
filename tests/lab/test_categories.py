"""Data sets say by what their scans are told apart, and a fit that cannot keep its word is refused before it begins."""

from pathlib import Path

import numpy as np
import pytest

from detectors.errors import TooFewError
from gateway.profile import Profile
from lab import data, fitting
from lab.categories import Told, categories_of
from lab.data import DataError

PROFILE = Profile.from_toml(
    b'name="tiny"\nversion="1"\ntask="multiclass"\nclasses=["a","b"]\n'
    b'[input]\nname="image"\nlayout="NCHW"\nchannels=1\nsize=[8,8]\nrange=[0.0,1.0]\n'
)


def written(path: Path, *, told: bool = True) -> Path:
    """240 scans to calibrate on: 200 of CT under two spellings, 40 of MR."""
    arrays = {}
    for split, count in (("train", 120), ("val", 240)):
        arrays[f"{split}_images"] = np.random.default_rng(1).integers(0, 255, (count, 8, 8)).astype(np.uint8)
        arrays[f"{split}_groups"] = np.array([f"{split}{k}" for k in range(count)])
        if told:
            arrays[f"{split}_modality"] = np.array(["MR" if k % 6 == 0 else "ct " for k in range(count)])
            arrays[f"{split}_source"] = np.array(["Room 1"] * count)
    np.savez(path, **arrays)
    return path


def test_a_data_set_says_by_what_its_scans_are_told_apart(tmp_path: Path) -> None:
    scans = data.load(written(tmp_path / "d.npz"), PROFILE).val
    categories = categories_of(scans, ("modality", "source"))
    assert {each: categories.count(each) for each in set(categories)} == {
        ("CT", "Room 1"): 200, ("MR", "Room 1"): 40,
    }  # fmt: skip
    with pytest.raises(DataError, match="does not say the manufacturer"):
        categories_of(scans, ("manufacturer",))


def test_a_category_that_cannot_be_kept_is_refused_before_any_work(tmp_path: Path) -> None:
    parts = fitting.Parts.of(data.load(written(tmp_path / "d.npz"), PROFILE), 0)
    told = Told.of(["modality"], ["modality=MR"])
    with pytest.raises(TooFewError, match=r"modality 'MR': 40 clean scans, and .* 0.01 needs 99, 299"):
        fitting.fit(b"never read", PROFILE, parts, tmp_path, fpr=0.01, key=None, seed=0, told=told)
    bare = fitting.Parts.of(data.load(written(tmp_path / "e.npz", told=False), PROFILE), 0)
    with pytest.raises(DataError, match="does not say the modality"):
        fitting.fit(b"never read", PROFILE, bare, tmp_path, fpr=0.01, key=None, seed=0, told=Told.of(["modality"], []))


@pytest.mark.parametrize("words", ["modality", "modality=CT,source=x", "source=x", "modality="])
def test_a_category_is_asked_for_in_whole(words: str) -> None:
    with pytest.raises(DataError, match="does not say modality"):
        Told.of(["modality"], [words])


def test_words_become_the_category_in_the_order_of_the_attributes() -> None:
    told = Told.of(["source", "modality"], ["source=ct-1,modality=CT"])
    assert (told.attributes, told.asked) == (("modality", "source"), (("CT", "ct-1"),))
