"""Attacked scans are valid DICOM, written as clean ones are; what is done to the object is what signatures see."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import torch
from click.testing import CliRunner
from pydicom.data import get_testdata_file

import signing
from gateway.pixels.decompressor import DisposableDecoder
from gateway.profile import Profile
from lab import phantoms
from lab.attacks.dicom import Opened, opened, written
from lab.attacks.tampering import TAMPERINGS
from lab.cli import main
from lab.demo.material import BUNDLED
from lab.demo.written import to_dicom
from signing import SignatureError, read
from signing.testing import Hospital

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NATIVE = ["CT_small.dcm", "MR_small_implicit.dcm"]
PATHS = ["--model", str(BUNDLED / "model.onnx"), "--profile", str(BUNDLED / "profile.toml")]


def bundled(name: str) -> bytes:
    return Path(str(get_testdata_file(name, download=False))).read_bytes()


@pytest.fixture(scope="module")
def profile() -> Profile:
    return phantoms.profile()


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    return Hospital.make(tmp_path_factory.mktemp("hospital"), now=NOW)


def looked_at(content: bytes, profile: Profile) -> Opened:
    with DisposableDecoder() as decoder:
        return opened(content, profile, decoder)


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm"]
)
def test_what_was_stored_is_what_is_read_again(name: str, profile: Profile) -> None:
    """Through the gateway's own decoder, and through pydicom's."""
    source = looked_at(bundled(name), profile)
    low, high = source.rendering.stored
    draws = torch.Generator().manual_seed(0)
    changed = (source.frames + torch.randint(-9, 10, source.frames.shape, generator=draws)).clamp(low, high)
    content = written(source, changed)

    assert torch.equal(looked_at(content, profile).frames, changed)
    theirs = pydicom.dcmread(BytesIO(content)).pixel_array.astype(np.float32)
    assert np.array_equal(theirs, changed[0, 0].numpy())


@pytest.mark.parametrize("name", NATIVE)
def test_every_byte_but_the_pixels_stays(name: str, profile: Profile) -> None:
    before = bundled(name)
    source = looked_at(before, profile)
    assert written(source, source.frames) == before

    changed = source.frames.clone()
    changed[0, 0, 0, 0] += 1
    after = written(source, changed)
    assert sum(first != second for first, second in zip(before, after, strict=True)) <= 2


def test_a_compressed_object_keeps_its_header(profile: Profile) -> None:
    before = bundled("MR_small_RLE.dcm")
    after = pydicom.dcmread(BytesIO(written(looked_at(before, profile), looked_at(before, profile).frames)))
    theirs = pydicom.dcmread(BytesIO(before))

    assert after.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert [each for each in after if each.keyword != "PixelData"] == [
        each for each in theirs if each.keyword != "PixelData"
    ]


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("kind", ["RGB", "YBR_FULL"])
def test_colour_is_written_as_it_is_read_again(planar: int, kind: str) -> None:
    """RGB in place, with every other byte as it was; another kind as RGB."""
    noise = np.random.default_rng(planar).integers(0, 256, (3, 10, 12), dtype=np.uint8)
    dataset = pydicom.dcmread(BytesIO(to_dicom(noise, name="colour")))
    dataset.PlanarConfiguration, dataset.PhotometricInterpretation = planar, kind
    file = BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    text = b'name="s"\nversion="1"\ntask="multiclass"\nclasses=["a","b"]\n[input]\nname="x"\nlayout="NCHW"\n'
    profile = Profile.from_toml(text + b"channels=3\nsize=[10,12]\nrange=[0.0,1.0]\n")
    source = looked_at(file.getvalue(), profile)
    changed = (source.frames + 3).clamp(0, 255)
    content = written(source, changed)

    assert source.frames.shape == (1, 3, 10, 12)
    assert torch.equal(looked_at(content, profile).frames, changed)
    assert np.array_equal(pydicom.dcmread(BytesIO(content)).pixel_array, changed[0].permute(1, 2, 0).numpy())
    if kind == "RGB":
        assert written(source, source.frames) == file.getvalue()


def test_what_cannot_be_stored_is_refused(profile: Profile) -> None:
    source = looked_at(bundled("CT_small.dcm"), profile)
    with pytest.raises(ValueError, match="whole numbers"):
        written(source, source.frames + 0.5)
    with pytest.raises(ValueError, match="whole numbers from"):
        written(source, source.frames + 1e6)
    with pytest.raises(ValueError, match="frames must be"):
        written(source, source.frames[..., :-1])


@pytest.mark.parametrize("name", list(TAMPERINGS))
@pytest.mark.parametrize("file", ["CT_small.dcm", "JPEG2000.dcm"])
def test_no_tampering_is_believed(name: str, file: str, hospital: Hospital) -> None:
    """Signed, then tampered with: each is seen for what it is, and an untouched copy verifies."""
    signed = signing.sign(bundled(file), signer=hospital.signer("ct"), at=NOW)
    signing.verify(read(signed), hospital.trust(), at=NOW)
    if name == "fragments" and file == "CT_small.dcm":
        with pytest.raises(ValueError, match="not encapsulated"):
            TAMPERINGS[name](signed)
        return
    tampered = TAMPERINGS[name](signed)

    assert tampered != signed
    with pytest.raises(SignatureError) as caught:
        signing.verify(read(tampered), hospital.trust(), at=NOW)
    expected = {
        "stripping": {"unsigned"},
        "fragments": {"mac_mismatch", "fragment_structure"},
        "window": {"mac_mismatch", "unsigned_attribute_present"},
    }
    assert caught.value.reason.value in expected.get(name, {"mac_mismatch"})


def ward(folder: Path, count: int = 4) -> Path:
    """Drawn slices as files, with their labels."""
    folder.mkdir()
    names = ["no nodule", "nodule"]
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "label"])
        for k, seed in enumerate(phantoms.seeds("test", count)):
            phantom = phantoms.draw(seed)
            (folder / f"{k}.dcm").write_bytes(phantoms.to_dicom(phantom))
            table.writerow([f"{k}.dcm", phantoms.profile().classes[phantom.label]])
    assert set(names) == set(phantoms.profile().classes)
    return folder


def test_the_command_writes_attacked_files_that_the_gateway_reads(tmp_path: Path, profile: Profile) -> None:
    source, out = ward(tmp_path / "ward"), tmp_path / "out"
    command = ["attack", "--attack", "pgd", "--eps", "2", "--option", "steps=3", "--option", "norm=linf", "--json"]
    done = CliRunner().invoke(main, [*command, *PATHS, "--data", str(source), "--out", str(out)])

    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report == json.loads((out / "attack.json").read_text())
    assert (report["n"], len(report["images"])) == (4, 4)
    assert report["attack"].startswith("PGD(eps=2.0, batch=32, seed=0, steps=3")
    for row in report["images"]:
        before, after = (looked_at((place / row["id"]).read_bytes(), profile).frames for place in (source, out))
        level = 1500 / 255
        assert float((after - before).abs().max()) / level == pytest.approx(row["linf"], abs=1e-3)
        assert row["linf"] <= 2


def test_the_command_attacks_npz_images(tmp_path: Path) -> None:
    size = phantoms.profile().input.size
    images = np.random.default_rng(0).integers(0, 256, (3, *size), np.uint8)
    np.savez(tmp_path / "a.npz", test_images=images, test_labels=np.array([0, 1, 0]), class_names=np.array(["x", "y"]))
    command = [
        "attack",
        "--attack",
        "fgsm",
        "--eps",
        "1",
        "--data",
        str(tmp_path / "a.npz"),
        "--out",
        str(tmp_path / "o"),
    ]
    done = CliRunner().invoke(main, [*command, *PATHS])

    assert done.exit_code == 0, done.output
    attacked = np.load(tmp_path / "o" / "a.npz")
    assert np.abs(attacked["test_images"].astype(int) - images).max() <= 1
    assert attacked["class_names"].tolist() == ["x", "y"]


def test_the_command_tampers_without_a_model(tmp_path: Path) -> None:
    source = ward(tmp_path / "ward", 2)
    done = CliRunner().invoke(
        main, ["attack", "--tamper", "metadata", "--data", str(source), "--out", str(tmp_path / "out")]
    )

    assert done.exit_code == 0, done.output
    assert {pydicom.dcmread(path).PatientID for path in (tmp_path / "out").glob("*.dcm")} == {"TAMPERED"}


def test_a_file_that_cannot_be_tampered_with_stops_no_other(tmp_path: Path) -> None:
    source, out = ward(tmp_path / "ward", 2), tmp_path / "out"
    (source / "0.dcm").write_bytes(b"no scan")
    done = CliRunner().invoke(main, ["attack", "--tamper", "metadata", "--data", str(source), "--out", str(out)])

    assert (done.exit_code, "0.dcm: " in done.stderr, "1 of 2 files are written" in done.stderr) == (2, True, True)
    report = json.loads((out / "attack.json").read_text())
    assert (report["files"], [each["file"] for each in report["failed"]]) == (["1.dcm"], ["0.dcm"])
    assert pydicom.dcmread(out / "1.dcm").PatientID == "TAMPERED"


NPZ: dict[str, tuple[dict[str, Any], str]] = {
    "labels of no class": ({"test_labels": np.array([0, 7])}, "outside the classes"),
    "words for labels": ({"test_labels": np.array(["a", "b"])}, "whole numbers"),
    "a label too few": ({"test_labels": np.array([0])}, "test_labels are"),
    "16 bits": ({"test_images": np.zeros((2, 128, 128), np.uint16)}, "uint8"),
    "no pixel": ({"test_images": np.zeros((2, 0, 128), np.uint8)}, "must be uint8"),
    "nothing on them": ({"test_images": np.full((2, 128, 128), 7, np.uint8)}, "2 have one value everywhere"),
}


@pytest.mark.parametrize("case", NPZ)
def test_images_that_cannot_be_attacked_are_named(case: str, tmp_path: Path) -> None:
    changed, sentence = NPZ[case]
    images = np.random.default_rng(0).integers(0, 256, (2, *phantoms.profile().input.size), np.uint8)
    arrays = {"test_images": images, "test_labels": np.array([0, 1])}
    kept: dict[str, Any] = arrays | changed
    np.savez(tmp_path / "a.npz", **kept)
    command = ["attack", "--attack", "fgsm", "--eps", "1", "--data", str(tmp_path / "a.npz")]
    done = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "o"), *PATHS])

    assert (done.exit_code, sentence in done.stderr) == (2, True), done.output


def test_a_file_that_is_no_npz_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no zip")
    command = ["attack", "--attack", "fgsm", "--eps", "1", "--data", str(tmp_path / "a.npz")]
    done = CliRunner().invoke(main, [*command, "--out", str(tmp_path / "o"), *PATHS])

    assert (done.exit_code, "cannot be read as .npz" in done.stderr) == (2, True), done.output


@pytest.mark.parametrize("words", [["--attack", "fgsm", "--eps", "1", *PATHS], ["--tamper", "metadata"]])
def test_what_is_read_is_never_written_over(words: list[str], tmp_path: Path) -> None:
    source = ward(tmp_path / "ward", 1)
    before = {path: path.read_bytes() for path in source.iterdir()}
    done = CliRunner().invoke(main, ["attack", *words, "--data", str(source), "--out", str(source)])

    assert (done.exit_code, "another folder" in done.stderr) == (2, True), done.output
    assert {path: path.read_bytes() for path in source.iterdir()} == before


MISTAKES: dict[str, tuple[list[str], str]] = {
    "nothing asked for": ([], "give --attack"),
    "no such tampering": (["--tamper", "burning"], "no tampering is called 'burning'"),
    "no such attack": (["--attack", "nonsense"], "no attack is called 'nonsense'"),
    "an evaluation's name": (["--attack", "apgd-dlr"], "no attack is called 'apgd-dlr' (here apgd, with options)"),
    "no budget": (["--attack", "pgd"], "pgd needs eps"),
    "half an option": (["--attack", "pgd", "--eps", "1", "--option", "steps"], "write name=value"),
    "a word for a number": (
        ["--attack", "pgd", "--eps", "1", "--option", "steps=many"],
        "steps: must be a whole number",
    ),
    "a part of a step": (["--attack", "pgd", "--eps", "1", "--option", "steps=2.5"], "steps: must be a whole number"),
    "a truth for a number": (["--attack", "pgd", "--eps", "1", "--option", "steps=true"], "steps: must be a whole"),
    "nothing to step on": (["--attack", "pgd", "--eps", "0.01"], "storable"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_named(case: str, tmp_path: Path) -> None:
    words, sentence = MISTAKES[case]
    source = ward(tmp_path / "ward", 1)
    model = PATHS if words else []
    places = ["--data", str(source), "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(main, ["attack", *words, *model, *places])

    assert done.exit_code == 2
    assert sentence in done.stderr
