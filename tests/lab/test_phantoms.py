"""Promises of the drawn chest slices and of the DICOM files made from them."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from io import BytesIO
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from pydicom.uid import UID

from gateway.profile import Profile
from lab import phantoms
from lab.drawing.scanner import RESCALE_INTERCEPT


@pytest.fixture(scope="module")
def slices() -> list[phantoms.Phantom]:
    return [phantoms.draw(seed) for seed in phantoms.seeds("demo", 8)]


def test_the_same_seed_gives_the_same_slice(slices: list[phantoms.Phantom]) -> None:
    again = phantoms.draw(slices[3].seed)

    assert np.array_equal(slices[3].pixels, again.pixels)
    assert slices[3].nodules == again.nodules


def test_different_seeds_give_different_patients(slices: list[phantoms.Phantom]) -> None:
    assert len({one.pixels.tobytes() for one in slices}) == len(slices)
    assert len({one.spacing_mm for one in slices}) == len(slices)
    assert len({one.level for one in slices}) == len(slices)


def test_stored_values_fill_twelve_bits_and_no_more(slices: list[phantoms.Phantom]) -> None:
    for one in slices:
        assert one.pixels.shape == (512, 512)
        assert one.pixels.dtype == np.uint16
        assert one.pixels.max() < 4096
        assert one.pixels[0, 0] == 0  # outside the circle of reconstruction


def test_the_tissues_have_their_hounsfield_units(slices: list[phantoms.Phantom]) -> None:
    """Air, lung, fat and bone are where radiology expects them, each a fair part of the slice."""
    for one in slices:
        hu = one.pixels.astype(np.int32) + RESCALE_INTERCEPT
        share = {
            "air": np.mean((hu > -1100) & (hu < -960)),
            "lung": np.mean((hu > -950) & (hu < -700)),
            "soft": np.mean((hu > -150) & (hu < 120)),
            "bone": np.mean(hu > 350),
        }
        assert share["air"] > 0.1, share
        assert share["lung"] > 0.04, share
        assert share["soft"] > 0.1, share
        assert 0.002 < share["bone"] < 0.12, share


def test_odd_seeds_have_nodules_in_the_slice_and_even_seeds_none(slices: list[phantoms.Phantom]) -> None:
    for one in slices:
        assert one.label == one.seed % 2 == (1 if one.nodules else 0)
        assert len(one.nodules) == len(one.nodule_pixels) <= 2
        for row, column, radius in one.nodule_pixels:
            assert 0 < row < 512
            assert 0 < column < 512
            assert 5 < radius < 40


def test_a_nodule_is_denser_than_the_lung_around_it() -> None:
    """What the label says can be seen: the nodule's middle stands out from a ring around it."""
    denser = []
    for seed in phantoms.seeds("demo", 24, skip=100):
        one = phantoms.draw(seed)
        rows, columns = np.mgrid[:512, :512]
        for row, column, radius in one.nodule_pixels[:1]:
            away = np.hypot(rows - row, columns - column)
            ring = one.pixels[(away > 1.6 * radius) & (away < 2.2 * radius)]
            denser.append(float(one.pixels[away < 0.6 * radius].mean() - np.median(ring)))
    assert np.mean(np.array(denser) > 40) > 0.8


def test_a_conspicuous_nodule_is_the_same_one_but_denser() -> None:
    plain, dense = (phantoms.draw(7_000_005, conspicuity=factor) for factor in (1.0, 3.0))
    (nodule, *_), (denser, *_) = plain.nodules, dense.nodules

    assert (nodule.x, nodule.y, nodule.radius_mm) == (denser.x, denser.y, denser.radius_mm)
    assert denser.contrast_hu == pytest.approx(3 * nodule.contrast_hu)
    changed = dense.pixels.astype(int) - plain.pixels
    row, column, radius = plain.nodule_pixels[0]
    rows, columns = np.mgrid[:512, :512]
    near = np.hypot(rows - row, columns - column) < 3 * radius
    assert changed[near].max() > 100
    assert np.abs(changed[~near]).max() <= 1 or len(plain.nodules) > 1


def test_half_of_any_run_of_seeds_has_a_nodule() -> None:
    assert phantoms.labels(phantoms.seeds("fit", 100, skip=7)).tolist().count(1) == 50


def test_no_seed_belongs_to_two_splits() -> None:
    spans = sorted((split.start, split.stop) for split in phantoms.SPLITS.values())

    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))


def test_more_seeds_than_a_split_has_are_refused() -> None:
    with pytest.raises(ValueError, match="1000000 seeds"):
        phantoms.seeds("b", 10, skip=999_995)


@pytest.mark.parametrize(("seed", "size", "words"), [(-1, 512, "seed"), (1, 511, "even"), (1, 32, "at least 64")])
def test_impossible_requests_are_refused(seed: int, size: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        phantoms.draw(seed, size=size)


def test_a_slice_can_be_drawn_at_another_size() -> None:
    assert phantoms.draw(3, size=256).pixels.shape == (256, 256)


def test_processes_draw_what_one_process_draws() -> None:
    of = phantoms.seeds("demo", 3)
    alone = list(phantoms.stored(of))
    together = list(phantoms.stored(of, workers=2))

    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


def test_rendered_gives_what_the_gateway_would_show_the_model(slices: list[phantoms.Phantom]) -> None:
    profile = phantoms.profile()
    images = phantoms.rendered([one.seed for one in slices[:2]], profile)

    assert images.shape == (2, 1, *profile.input.size)
    assert images.dtype == torch.float32
    assert float(images.min()) >= 0
    assert float(images.max()) <= 1


def test_the_profile_names_the_classes_in_the_order_of_the_labels() -> None:
    assert Profile.load(phantoms.ASSETS / "profile.toml").classes == phantoms.CLASSES


def test_the_same_slice_gives_the_same_dicom_bytes(slices: list[phantoms.Phantom]) -> None:
    assert phantoms.to_dicom(slices[0]) == phantoms.to_dicom(phantoms.draw(slices[0].seed))


def test_the_dicom_file_holds_the_pixels_and_their_meaning(slices: list[phantoms.Phantom]) -> None:
    one = slices[1]
    read = pydicom.dcmread(BytesIO(phantoms.to_dicom(one, patient_id="P1", patient_name="Roe^Jane", study="s")))

    assert np.array_equal(read.pixel_array, one.pixels)
    assert read.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"
    assert (read.SOPClassUID, read.Modality) == ("1.2.840.10008.5.1.4.1.1.2", "CT")
    assert (int(read.RescaleIntercept), int(read.RescaleSlope)) == (-1024, 1)
    assert (read.BitsAllocated, read.BitsStored, read.HighBit, read.PixelRepresentation) == (16, 12, 11, 0)
    assert (read.PatientID, str(read.PatientName)) == ("P1", "Roe^Jane")
    assert float(read.PixelSpacing[0]) == pytest.approx(one.spacing_mm, abs=1e-5)


TYPE_1 = """
    SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality FrameOfReferenceUID ImageType
    SamplesPerPixel PhotometricInterpretation Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation
    RescaleIntercept RescaleSlope PixelSpacing ImageOrientationPatient ImagePositionPatient WindowCenter
    WindowWidth PixelData PatientPosition
"""
TYPE_2 = """
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID
    AccessionNumber SeriesNumber PositionReferenceIndicator Manufacturer InstanceNumber SliceThickness KVP
    AcquisitionNumber
"""


def test_every_required_attribute_of_a_ct_image_is_there(slices: list[phantoms.Phantom]) -> None:
    """PS3.3 A.3: type 1 attributes have a value, type 2 attributes are present."""
    read = pydicom.dcmread(BytesIO(phantoms.to_dicom(slices[0])))

    assert [keyword for keyword in TYPE_1.split() if keyword not in read or read[keyword].is_empty] == []
    assert [keyword for keyword in TYPE_2.split() if keyword not in read] == []


def test_uids_are_valid_and_shared_only_within_a_study(slices: list[phantoms.Phantom]) -> None:
    def read(one: phantoms.Phantom, study: str | None, number: int) -> pydicom.Dataset:
        return pydicom.dcmread(BytesIO(phantoms.to_dicom(one, study=study, instance_number=number)))

    first, second, alone = read(slices[0], "s", 1), read(slices[1], "s", 2), read(slices[0], None, 1)

    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        assert UID(first[keyword].value).is_valid
        assert first[keyword].value.startswith("2.25.")
        assert first[keyword].value != alone[keyword].value
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.ImagePositionPatient != second.ImagePositionPatient


def test_dcmtk_reads_and_shows_the_file_without_a_warning(slices: list[phantoms.Phantom], tmp_path: Path) -> None:
    if shutil.which("dcmdump") is None:
        pytest.skip("needs dcmtk")
    path = tmp_path / "slice.dcm"
    path.write_bytes(phantoms.to_dicom(slices[0]))

    for command in (["dcmdump", str(path)], ["dcm2pnm", "--use-window", "1", str(path), str(tmp_path / "out.pgm")]):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert done.stderr == ""
    assert (tmp_path / "out.pgm").stat().st_size > 512 * 512
