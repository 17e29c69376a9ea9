"""A folder with nothing in it is not a folder in which all is well."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from gateway.cli import main
from signing.testing import Hospital


@pytest.mark.parametrize("as_json", [False, True])
def test_an_empty_folder_cannot_be_verified(tmp_path: Path, as_json: bool) -> None:
    hospital, empty = Hospital.make(tmp_path / "pki"), tmp_path / "scans"
    empty.mkdir()
    arguments = ["verify", str(empty), "--trust", str(hospital.path("root.pem")), *(["--json"] if as_json else [])]
    finished = CliRunner().invoke(main, arguments)
    assert finished.exit_code == 2
    assert "there is no file" in finished.stderr
    if as_json:
        assert json.loads(finished.stdout) == {"files": []}


def test_an_empty_folder_cannot_be_linted(tmp_path: Path) -> None:
    finished = CliRunner().invoke(main, ["lint", str(tmp_path)])
    assert finished.exit_code == 2
    assert "there is no file" in finished.stderr
