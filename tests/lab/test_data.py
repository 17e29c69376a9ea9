"""A folder of DICOM files with a table becomes splits that share no patient."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from gateway.profile import Profile
from lab import phantoms
from lab.data import DataError, load, stored
from lab.statistics import clopper_pearson

HEAD = "file,label,split,group\n"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return phantoms.profile()


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """Four small drawn slices of three patients."""
    drawn = [phantoms.draw(seed, size=64) for seed in phantoms.seeds("demo", 4)]
    patients = ("P1", "P1", "P2", "P3")
    return {
        f"{k}.dcm": phantoms.to_dicom(slice_, patient_id=patient)
        for k, (slice_, patient) in enumerate(zip(drawn, patients, strict=True))
    }


def folder(place: Path, files: dict[str, bytes], table: str) -> Path:
    for name, content in files.items():
        (place / name).write_bytes(content)
    (place / "labels.csv").write_text(table)
    return place


def test_the_table_says_split_label_and_patient(tmp_path: Path, files: dict[str, bytes], profile: Profile) -> None:
    table = HEAD + "0.dcm,no nodule,train,\n1.dcm,nodule,train,\n2.dcm,no nodule,val,\n3.dcm,nodule,test,Q\n"

    read = load(folder(tmp_path, files, table), profile)

    assert (len(read.train), len(read.val), len(read.test)) == (2, 1, 1)
    assert read.train.groups == ("P1", "P1")
    assert read.test.groups == ("Q",)
    assert read.train.labels.tolist() == [0, 1]
    assert read.train.images.shape == (2, 1, 128, 128)
    assert bool(read.train.images.isfinite().all())


def test_without_splits_a_patient_always_falls_into_the_same_one(
    tmp_path: Path, files: dict[str, bytes], profile: Profile
) -> None:
    table = "file,label\n" + "".join(f"{k}.dcm,nodule\n" for k in range(4))
    place = folder(tmp_path, files, table)

    first, second = load(place, profile), load(place, profile)

    assert first.sha256 == second.sha256
    assert first.train.ids == second.train.ids
    assert sum(map(len, (first.train, first.val, first.test))) == 4


TABLES = {
    "a patient in two splits": ("0.dcm,nodule,train,\n1.dcm,nodule,val,\n", "no group may be in two splits"),
    "an unknown class": ("0.dcm,tumour,train,\n", "no class of the profile"),
    "an unknown split": ("0.dcm,nodule,holdout,\n", "holdout"),
    "a missing file": ("9.dcm,nodule,train,\n", "9.dcm: cannot be read"),
    "a path that climbs out": ("../../etc/passwd,nodule,train,\n", "lies outside the folder"),
    "no DICOM": ("labels.csv,nodule,train,\n", "labels.csv: "),
    "no row": ("", "needs the columns"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_that_cannot_be_followed_is_refused(
    tmp_path: Path, files: dict[str, bytes], profile: Profile, case: str
) -> None:
    rows, sentence = TABLES[case]
    with pytest.raises(DataError, match=sentence):
        load(folder(tmp_path, files, HEAD + rows), profile)


def test_patients_in_two_splits_are_counted_and_found_by_row_and_never_named(
    tmp_path: Path, files: dict[str, bytes], profile: Profile
) -> None:
    rows = "2.dcm,nodule,train,A\n0.dcm,nodule,train,Ada\n1.dcm,nodule,test,Ada\n3.dcm,nodule,val,A\n"
    with pytest.raises(DataError) as caught:
        load(folder(tmp_path, files, HEAD + rows), profile)

    assert "no group may be in two splits, and 2 are" in str(caught.value)
    assert "the patient of row 0 of train is also in row 0 of val" in str(caught.value)
    assert "Ada" not in str(caught.value)


def test_neither_file_nor_folder_is_refused(tmp_path: Path, profile: Profile) -> None:
    with pytest.raises(DataError, match="neither"):
        load(tmp_path / "nothing.npz", profile)
    (tmp_path / "junk.npz").write_bytes(b"PK\x03\x04junk")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "junk.npz", profile)


def test_what_is_attacked_needs_labels_and_what_is_only_shown_does_not(tmp_path: Path, profile: Profile) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16), np.uint8)
    np.savez(tmp_path / "a.npz", test_images=images)
    with pytest.raises(DataError, match="has no test_labels"):
        stored(tmp_path / "a.npz", "test", profile)
    assert len(stored(tmp_path / "a.npz", "test", profile, labelled=False).images) == 3


def test_the_interval_holds_its_rate_and_reaches_the_ends() -> None:
    some, none, all_ = clopper_pearson(3, 300), clopper_pearson(0, 300), clopper_pearson(5, 5)

    assert some["low"] < 0.01 < some["high"]
    assert (none["low"], none["high"]) == (0.0, pytest.approx(0.0122, abs=1e-4))
    assert all_["high"] == 1.0
    with pytest.raises(ValueError, match="no rate"):
        clopper_pearson(0, 0)


def test_shared_data_is_read_whole(profile: Profile) -> None:
    root = Path(os.environ.get("SCANWARD_SHARED", Path(__file__).parents[2] / ".." / "shared"))
    path = root / "data" / "images" / "chest_xray.npz"
    if not path.exists():
        pytest.skip(f"needs shared data: {path.name}")

    read = load(path, profile)

    assert (len(read.train), len(read.val), len(read.test)) == (1312, 376, 501)
    assert torch.equal(read.val.images, read.val.images.clamp(0, 1))
