"""Colour goes all the way: fitted, scored and evaluated in the lab, screened, held and pictured by a real gateway."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit

import lesions
from detectors.methods.twins import Hardening
from gateway.client.client import Answer, Client
from gateway.client.reviewer import Reviewer
from gateway.profile import Profile
from gateway.testing import GatewayProcess, Site, write_signing_key
from lab import fitting
from lab.cli import main
from lab.data import load
from lab.demo.written import to_dicom
from lab.training import Recipe, export, train_classifier
from site_tables import SMALL, route

SIZE, FPR = 32, 0.05
COUNTS = {"train": 220, "val": 100, "test": 60}
QUICK = (Hardening(0.5, 6.0, 6, 2e-3, batch=16), Hardening(1.0, 6.0, 6, 4e-3, batch=16))
PROFILE = f"""
name = "lesions"
version = "1"
task = "multiclass"
classes = ["even", "ragged"]
[input]
name = "image"
layout = "NCHW"
channels = 3
size = [{SIZE}, {SIZE}]
range = [0.0, 1.0]
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site whose route `skin` is guarded by detectors that were fitted on drawn skin."""
    tables = SMALL + route("skin", fpr=FPR, grey_p=0.1, studies=True)
    made = Site.make(tmp_path_factory.mktemp("colour"), tables=tables, routes=["skin"])
    folder = made.directory / "small"
    folder.mkdir()
    (folder / "profile.toml").write_text(PROFILE)
    lesions.write(folder / "data.npz", SIZE, COUNTS)
    profile = Profile.load(folder / "profile.toml")
    data = load(folder / "data.npz", profile)
    recipe = Recipe(widths=(12, 24), blocks=(1, 1), strides=(2, 2), epochs=10, batch=32)
    classifier = train_classifier(data.train.images, data.train.labels, classes=2, recipe=recipe)
    model = export(classifier, profile)
    (folder / "model.onnx").write_bytes(model)
    parts, key = fitting.Parts.of(data, seed=0), write_signing_key(folder / "artefacts.pem")
    fitting.fit(
        model, profile, parts, folder / "detectors", fpr=FPR, key=key, seed=0, denoisers=("median",), recipes=QUICK
    )
    return made


def lab(site: Site, command: str, data: Path, *more: str) -> Result:
    folder = site.directory / "small"
    words = ["--model", folder / "model.onnx", "--profile", folder / "profile.toml", "--data", data]
    return CliRunner().invoke(main, [command, *(str(word) for word in words), *more])


@pytest.fixture(scope="module")
def attacked(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set with its test images attacked at 8 levels."""
    out = tmp_path_factory.mktemp("attacked")
    words = ["--attack", "pgd", "--eps", "8", "--out", str(out)]
    ended = lab(site, "attack", site.directory / "small" / "data.npz", *words)
    assert ended.exit_code == 0, ended.stderr
    return out / "data.npz"


def misread(attacked: Path) -> list[int]:
    """Which of the attacked images the model reads wrongly."""
    rows = json.loads((attacked.parent / "attack.json").read_text())["images"]
    return [place for place, row in enumerate(rows) if row["success"]]


def test_the_artefact_says_that_it_knows_colour(site: Site) -> None:
    assert json.loads((site.directory / "small" / "detectors" / "manifest.json").read_text())["colour"] is True


def test_attacked_images_lie_in_the_file_as_clean_ones_do(site: Site, attacked: Path) -> None:
    with np.load(site.directory / "small" / "data.npz") as clean, np.load(attacked) as changed:
        before, after = clean["test_images"], changed["test_images"]
    assert after.dtype == np.uint8
    assert after.shape == before.shape == (60, SIZE, SIZE, 3)
    moved = after.astype(int) - before
    assert 0 < np.abs(moved).max() <= 8
    assert (moved[..., 0] != moved[..., 2]).any()


def scored(site: Site, data: Path) -> dict[str, Any]:
    ended = lab(site, "score", data, "--detectors", str(site.directory / "small" / "detectors"), "--json")
    assert ended.exit_code == 0, ended.stderr
    return dict(json.loads(ended.stdout))


def test_the_score_tells_attacked_lesions_from_clean_ones(site: Site, attacked: Path) -> None:
    clean = site.directory / "small" / "data.npz"
    p = {name: np.array(scored(site, data)["p"]) for name, data in {"clean": clean, "attacked": attacked}.items()}
    assert (p["clean"] <= FPR).mean() <= 0.15
    wrong = misread(attacked)
    assert len(wrong) >= 30
    assert (p["attacked"][wrong] <= FPR).mean() >= 0.8


def test_an_evaluation_measures_colour(site: Site, tmp_path: Path) -> None:
    folder = site.directory / "small"
    words = ["--detectors", str(folder / "detectors"), "--attacks", "fgsm", "--eps", "8", "--images", "10", "--json"]
    ended = lab(site, "evaluate", folder / "data.npz", *words, "--out", str(tmp_path))
    assert ended.exit_code == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["clean_accuracy"] > 0.85
    assert report["attacks"][0]["n_attacked"] == 10


@pytest.fixture(scope="module")
def gateway(site: Site) -> Iterator[GatewayProcess]:
    with GatewayProcess(site.config, environment={"OMP_NUM_THREADS": "2"}) as process:
        yield process


def images(data: Path) -> NDArray[np.uint8]:
    """(N, 3, rows, columns) test images."""
    with np.load(data) as file:
        return np.moveaxis(file["test_images"], 3, 1)


def screened(site: Site, gateway: GatewayProcess, content: bytes) -> Answer:
    with Client(gateway.addresses.grpc, token=site.tokens["scanner"]) as client:
        return client.protect(content, "skin")


def test_a_clean_photograph_gets_the_answer_of_the_model_that_was_scored(
    site: Site, gateway: GatewayProcess, attacked: Path
) -> None:
    data = site.directory / "small" / "data.npz"
    table = scored(site, data)
    calm = int(np.argmax(table["p"]))
    answer = screened(site, gateway, to_dicom(images(data)[calm], name="calm"))
    assert answer.disposition == "admit"
    assert answer.prediction is not None
    assert answer.prediction.label == ["even", "ragged"][table["prediction"][calm]]


@pytest.fixture(scope="module")
def held(site: Site, gateway: GatewayProcess, attacked: Path) -> Answer:
    wrong = images(attacked)[misread(attacked)[:8]]
    answers = [screened(site, gateway, to_dicom(each, name=f"attacked-{k}")) for k, each in enumerate(wrong)]
    suspects = [answer for answer in answers if answer.reasons == ("suspect",)]
    assert len(suspects) >= 6
    return suspects[0]


def test_an_attacked_photograph_is_held_and_pictured_in_colour(
    site: Site, gateway: GatewayProcess, held: Answer, tmp_path: Path
) -> None:
    assert held.disposition == "quarantine"
    with Reviewer(gateway.addresses.grpc, token=site.tokens["reviewer"]) as reviewer:
        reviewer.save_map(reviewer.show(held.quarantine_id), tmp_path / "map.png")
    page = np.asarray(Image.open(tmp_path / "map.png")).astype(int)
    plain = page[16 : 16 + 512, 16 : 16 + 512]
    assert (plain[..., 0] - plain[..., 2]).mean() > 20  # skin is red before it is blue


def test_a_photograph_in_jpeg_is_examined(site: Site, gateway: GatewayProcess) -> None:
    picture = np.moveaxis(images(site.directory / "small" / "data.npz")[0], 0, 2)
    file, written = io.BytesIO(), io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "JPEG", quality=95)
    dataset = dcmread(io.BytesIO(to_dicom(np.moveaxis(picture, 2, 0), name="jpeg")))
    dataset.PhotometricInterpretation = "YBR_FULL_422"
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = encapsulate([file.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dcmwrite(written, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)
    answer = screened(site, gateway, written.getvalue())
    assert "unexaminable" not in answer.reasons


def test_a_strange_kind_of_colour_is_held_unexamined(site: Site, gateway: GatewayProcess) -> None:
    dataset = dcmread(io.BytesIO(to_dicom(images(site.directory / "small" / "data.npz")[1], name="strange")))
    dataset.PhotometricInterpretation = "HSV"
    written = io.BytesIO()
    dcmwrite(written, dataset, enforce_file_format=True, implicit_vr=False, little_endian=True)
    answer = screened(site, gateway, written.getvalue())
    assert (answer.disposition, answer.reasons) == ("quarantine", ("unexaminable",))
