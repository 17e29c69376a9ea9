"""What `score` and `evaluate` say of an artefact, they say of what was signed, or say that nobody checked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from detectors.artifact import MANIFEST
from gateway.protected import MANIFEST_ENVELOPE
from lab.cli import main
from signing.envelope import create_key

COMMANDS = {"score": (), "evaluate": ("--attacks", "fgsm", "--eps", "2", "--images", "4")}
UNCHECKED = "was not checked"


@pytest.fixture
def artefact(site: Path, fitted: object, tmp_path: Path) -> Path:
    return Path(shutil.copytree(site / "out", tmp_path / "artefact"))


def run(site: Path, artefact: Path, command: str, *more: str | Path) -> Result:
    given = ["--model", site / "model.onnx", "--profile", site / "profile.toml", "--data", site / "data.npz"]
    words = [command, *given, "--detectors", artefact, *COMMANDS[command], *more]
    return CliRunner().invoke(main, [str(each) for each in words])


def altered(artefact: Path) -> None:
    facts = json.loads((artefact / MANIFEST).read_bytes())
    (artefact / MANIFEST).write_text(json.dumps(facts | {"fpr": 0.2, "guarantee": "marginal"}))


def flipped(artefact: Path) -> None:
    """One byte of what was signed."""
    sealed = json.loads((artefact / MANIFEST_ENVELOPE).read_bytes())
    text = sealed["payload"]
    sealed["payload"] = text[:40] + ("A" if text[40] != "A" else "B") + text[41:]
    (artefact / MANIFEST_ENVELOPE).write_text(json.dumps(sealed))


@pytest.mark.parametrize("command", COMMANDS)
def test_with_a_key_the_signed_manifest_is_believed(site: Path, artefact: Path, command: str) -> None:
    (artefact / MANIFEST).unlink()  # for people: what was signed lies in the envelope

    result = run(site, artefact, command, "--artefact-key", site / "key.pem.pub", "--json")

    assert result.exit_code == 0, result.stderr
    assert UNCHECKED not in result.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_without_a_key_it_is_said_that_nobody_checked(site: Path, artefact: Path, command: str) -> None:
    signed = run(site, artefact, command)
    (artefact / MANIFEST_ENVELOPE).unlink()
    unsigned = run(site, artefact, command)

    for result in (signed, unsigned):
        assert result.exit_code == 0, result.stderr
        assert f"The signature of {artefact} {UNCHECKED}" in result.stderr


@pytest.mark.parametrize("with_key", [False, True])
@pytest.mark.parametrize("change", [altered, flipped], ids=lambda change: change.__name__)
@pytest.mark.parametrize("command", COMMANDS)
def test_two_manifests_that_differ_are_refused(
    site: Path, artefact: Path, command: str, change: object, with_key: bool
) -> None:
    assert callable(change)
    change(artefact)

    result = run(site, artefact, command, *(("--artefact-key", site / "key.pem.pub") if with_key else ()))

    assert result.exit_code == 2
    assert MANIFEST_ENVELOPE in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_what_another_key_signed_is_refused(site: Path, artefact: Path, tmp_path: Path, command: str) -> None:
    create_key(tmp_path / "other.pem")

    result = run(site, artefact, command, "--artefact-key", tmp_path / "other.pem.pub")

    assert result.exit_code == 2
    assert f"{artefact / MANIFEST_ENVELOPE}: signed by none of the known keys" in result.stderr


def test_a_gate_passes_no_artefact_that_nobody_signed(site: Path, artefact: Path, tmp_path: Path) -> None:
    (artefact / MANIFEST_ENVELOPE).unlink()
    given = ["--model", site / "model.onnx", "--profile", site / "profile.toml", "--data", site / "data.npz"]
    threat = Path(__file__).parents[2] / "deploy" / "threat-model.toml"
    words = ["evaluate", *given, "--detectors", artefact, "--threat-model", threat, "--junit", tmp_path / "gate.xml"]

    result = CliRunner().invoke(main, [str(each) for each in (*words, "--artefact-key", site / "key.pem.pub")])

    assert result.exit_code == 2
    assert f"{artefact / MANIFEST_ENVELOPE}: cannot be read" in result.stderr
    assert not (tmp_path / "gate.xml").exists()
