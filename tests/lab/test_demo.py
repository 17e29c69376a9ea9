"""The demo's table comes out as it must, on a real gateway, and says so in the documented form."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from detectors.artifact import MANIFEST, Artefact
from gateway.pixels.imaging import render
from lab.demo.material import drawn
from lab.demo.prepare import GREY, prepare
from lab.demo.rows import ROWS, Preparation
from signing.testing import Hospital


def test_every_row_is_answered_as_it_must_be(kept_demo) -> None:
    _, finished = kept_demo
    document = json.loads(finished.stdout)
    wrong = [row for row in document["rows"] if not row["ok"]]
    assert not wrong
    assert finished.returncode == 0
    assert document["ok"]
    assert [row["name"] for row in document["rows"]] == [row.name for row in ROWS]
    assert all(row["receipt_ok"] for row in document["rows"])
    assert document["audit"]["verified"]


def test_the_undefended_model_is_fooled_where_the_demo_says_so(kept_demo) -> None:
    rows = {row["name"]: row for row in json.loads(kept_demo[1].stdout)["rows"]}
    for name in ("unsigned-adversarial", "signed-adversarial"):
        assert rows[name]["p_value"] <= 0.01
        assert rows[name]["diagnosis"] is None
    assert 0.01 < rows["grey-zone"]["p_value"] <= 0.05


def test_its_pictures_are_there(kept_demo) -> None:
    images = [Path(image) for image in json.loads(kept_demo[1].stdout)["images"]]
    assert len(images) == 3
    assert all(image.read_bytes().startswith(b"\x89PNG") for image in images)


def test_what_it_leaves_can_be_served_again(kept_demo) -> None:
    command = [sys.executable, "-m", "gateway.cli", "check-config", str(kept_demo[0] / "scanward.toml")]
    assert subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
    assert {path.stem for path in (kept_demo[0] / "scans").iterdir()} == {row.name for row in ROWS}


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    command = [sys.executable, "-m", "gateway.cli", "demo", "--keep", str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 2
    assert "is not empty" in finished.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


def test_a_clean_row_is_no_scan_that_happens_to_look_odd(tmp_path: Path) -> None:
    """One clean scan in twenty does, and would be denoised where the table says admitted."""
    material = drawn()
    model = material.model_file.read_bytes()
    artefact = Artefact.load(
        material.detectors, (material.detectors / MANIFEST).read_bytes(), model, material.profile.sha256,
        torch.device("cpu"),
    )  # fmt: skip

    def odd(index: int) -> bool:
        specimen = material.specimen(index)
        seen = artefact.ensemble.examine(render(specimen.stored, material.rendering, material.profile))
        return float(seen.p_value[0]) <= GREY and int(seen.predictions[0]) == specimen.label

    second = next(index for index in range(1, material.count) if odd(index))
    order = [0, second, *range(second + 1, material.count)]
    assert not odd(0)
    sent = prepare(
        Hospital.make(tmp_path), replace(material, specimen=lambda index: material.specimen(order[index]))
    )  # fmt: skip

    oddity = material.specimen(second)
    assert sent[Preparation.UNSIGNED].data != oddity.as_dicom(oddity.stored)
