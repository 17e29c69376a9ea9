"""Promises of `scanward-lab harden`: one command, what it leaves, and what it refuses before it trains."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from detectors.models.kinds import rebuilt
from detectors.models.outputs import Activation, Task
from gateway import durable
from gateway.profile import Profile
from lab import hardening_results
from lab.attacks.attack import Target
from lab.attacks.pgd import PGD
from lab.cli import main
from lab.data import DataError
from lab.hardening import harden as hardening
from lab.hardening import words
from lab.hardening.harden import Served
from lab.hardening.method import Course
from lab.hardening.registry import METHODS, named
from lab.learning import Recipe
from lab.training import export
from lab.workbench import span_of

SIDE = 16
PROFILE = """
name = "discs"
version = "1"
task = "multiclass"
classes = ["dark", "bright"]
[input]
name = "image"
layout = "NCHW"
channels = 1
size = [16, 16]
range = [-1.0, 1.0]
[output]
name = "logits"
activation = "softmax"
"""
TINY = ("widths=[6,8]", "blocks=[1,1]", "strides=[1,2]", "batch=16", "peak_rate=0.01", "epochs=4")


def arrays(counts: dict[str, int]) -> dict[str, NDArray[Any]]:
    """Noise with a darker or a brighter middle."""
    rng = np.random.default_rng(0)
    found: dict[str, NDArray[Any]] = {"class_names": np.array(["dark", "bright"])}
    for split, count in counts.items():
        labels = np.arange(count) % 2
        images = 110 + 5 * rng.normal(size=(count, SIDE, SIDE))
        images[:, 5:11, 5:11] += 25 * (2 * labels - 1)[:, None, None]
        found |= {f"{split}_images": images.round().astype(np.uint8), f"{split}_labels": labels}
        found |= {f"{split}_groups": np.array([f"{split}{k // 2}" for k in range(count)])}
    return found


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "profile.toml").write_text(PROFILE)
    np.savez(tmp_path / "data.npz", **arrays({"train": 64, "val": 8, "test": 24}))
    return tmp_path


def run(site: Path, method: str, *options: str, out: str = "out") -> Result:
    recipes = [word for setting in TINY for word in ("--recipe", setting)]
    given = ["--data", site / "data.npz", "--profile", site / "profile.toml", "--out", site / out, "--attacks", "pgd"]
    words_ = [*map(str, given), "--eps", "2,4", "--steps", "5", "--attacked", "20", *recipes, *options]
    return CliRunner().invoke(main, ["harden", method, *words_], catch_exceptions=False)


def test_one_command_leaves_a_model_and_a_card_of_what_was_measured(site: Path) -> None:
    first = run(site, "pgd_at", "--option", "eps=2", "--json")
    card = json.loads(first.stdout)
    written = (site / "out" / "model.onnx").read_bytes()
    again = run(site, "pgd_at", "--option", "eps=2", "--json")

    assert sorted(path.name for path in (site / "out").iterdir()) == [
        "card.json", "card.md", "model.onnx", "profile.toml",
    ]  # fmt: skip
    assert card == json.loads((site / "out" / "card.json").read_text())
    assert card["configuration"] == repr(named("pgd_at", eps=2))
    assert card["data"]["train"] == {"n": 64, "patients": 32}
    assert "training" in first.stderr
    assert "training" not in again.stderr, "a finished run was run again"
    assert again.stdout == first.stdout
    assert measured_again(site, written, card)


class EndedError(BaseException):
    """The process is ended from outside: no defect that a command could tell of."""


def test_a_run_that_is_cut_short_leaves_no_card_of_another_model(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_arguments: object, **_more: object) -> None:
        raise EndedError

    def lie() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (site / "out").iterdir() if path.is_file()}

    run(site, "pgd_at", "--option", "eps=2")
    finished = lie()
    with monkeypatch.context() as patched:
        patched.setattr(hardening, "measure", ended)
        with pytest.raises(EndedError):
            run(site, "trades")
    measuring = lie()
    card = json.loads(run(site, "trades", "--json").stdout)

    assert {name: measuring.get(name) for name in finished} == finished
    assert hashlib.sha256((site / "out" / "model.onnx").read_bytes()).hexdigest() == card["model_sha256"]
    assert card["name"] == "trades"
    assert set(lie()) == set(finished)


@pytest.mark.parametrize("last", ["model.onnx", "card.md"])
def test_files_of_two_runs_never_lie_beside_a_card(site: Path, monkeypatch: pytest.MonkeyPatch, last: str) -> None:
    """Whatever is written last before the end: a card that lies there is that of the model beside it."""
    run(site, "pgd_at", "--option", "eps=2")
    write = durable.replace

    def cut(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        write(path, data, mode=mode)
        if path.name == last:
            raise EndedError

    monkeypatch.setattr(durable, "replace", cut)
    with pytest.raises(EndedError):
        run(site, "trades")

    cards = [json.loads(path.read_text()) for path in (site / "out").glob("card.json")]
    model = hashlib.sha256((site / "out" / "model.onnx").read_bytes()).hexdigest()
    assert all(card["model_sha256"] == model for card in cards)
    assert not (site / "out" / "card.md").exists() or "trades" in (site / "out" / "card.md").read_text()


def measured_again(site: Path, written: bytes, card: dict[str, Any]) -> bool:
    """The figures of the card, from the file that was written."""
    profile = Profile.load(site / "profile.toml")
    data = np.load(site / "data.npz")
    images = torch.from_numpy(data["test_images"]).float()[:, None]
    labels = torch.from_numpy(data["test_labels"])
    span = span_of(profile)
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    answers = session.run(None, {"image": span.from_unit(images / 255).numpy()})[0]
    assert card["measured"]["clean"]["rate"] == (answers.argmax(1) == labels.numpy()).mean()

    of = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:20]
    reference = rebuilt(written)
    target = Target(reference, lambda x: span.from_unit(x / 255), 1.0, 0.0, 255.0)
    for row in card["measured"]["robust"]:
        attack = PGD(eps=row["eps"], steps=5, confidence=0.0, batch=64)
        assert row["configuration"] == repr(attack)
        assert row["rate"] == float((~attack(target, images[of], labels[of]).success).double().mean())
    text = (site / "out" / "card.md").read_text()
    return f"{100 * card['measured']['clean']['rate']:.1f} %" in text and "Madry" in text


def in_colour(values: dict[str, NDArray[Any]], *, alike: bool) -> dict[str, NDArray[Any]]:
    """Images of three channels: green is the opposite of red and blue, unless all are alike."""
    found = dict(values)
    for split in ("train", "val", "test"):
        red = values[f"{split}_images"]
        found[f"{split}_images"] = np.stack([red, red if alike else 220 - red, red], -1)
    return found


@pytest.mark.parametrize("alike", [True, False])
def test_colour_is_attacked_in_each_channel_and_grey_in_all_alike(site: Path, alike: bool) -> None:
    (site / "profile.toml").write_text(PROFILE.replace("channels = 1", "channels = 3"))
    scans = in_colour(arrays({"train": 64, "val": 8, "test": 24}), alike=alike)
    np.savez(site / "data.npz", **scans)
    card = json.loads(run(site, "plain", "--json").stdout)

    profile = Profile.load(site / "profile.toml")
    span = span_of(profile)
    images = torch.from_numpy(scans["test_images"]).float().movedim(-1, 1)
    of = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:20]
    labels = torch.from_numpy(scans["test_labels"])[of]
    reference = rebuilt((site / "out" / "model.onnx").read_bytes())
    target = Target(reference, lambda x: span.from_unit(x / 255).expand(-1, 3, -1, -1), 1.0, 0.0, 255.0)
    stored = images[of][:, :1] if alike else images[of]
    assert card["measured"]["clean"]["rate"] > 0.8
    for row in card["measured"]["robust"]:
        attack = PGD(eps=row["eps"], steps=5, confidence=0.0, batch=64)
        assert row["rate"] == float((~attack(target, stored, labels).success).double().mean())


def test_a_given_model_is_learnt_from_and_voted_beside(site: Path) -> None:
    run(site, "plain", out="plain")
    model = site / "plain" / "model.onnx"
    card = json.loads(run(site, "twin", "--model", str(model), "--json", out="twin").stdout)

    assert card["teacher_sha256"] == json.loads((site / "plain" / "card.json").read_text())["model_sha256"]
    assert set(card["measured"]["beside"]) == {"2", "4"}
    assert "as a voter" in (site / "twin" / "card.md").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"train_labels": np.zeros(64, np.int64)}, "class bright has no scan"),
        ({"train_labels": np.arange(64) % 3}, "outside the classes"),
        ({"train_groups": np.array(["test0"] * 64)}, "no group may be in two splits"),
        ({"train_images": np.zeros((0, SIDE, SIDE), np.uint8)}, "the train split is empty"),
        ({"test_images": np.zeros((0, SIDE, SIDE), np.uint8)}, "the test split is empty"),
        (arrays({"train": 12}), "too few for one batch of 16"),
    ],
)
def test_data_that_cannot_teach_is_refused_before_anything_is_trained(
    site: Path, change: dict[str, NDArray[Any]], said: str
) -> None:
    with np.load(site / "data.npz") as file:
        kept = {name: file[name] for name in file.files}
    np.savez(site / "data.npz", **(kept | change))
    result = run(site, "trades")

    assert result.exit_code == 2
    assert said in result.stderr
    assert not (site / "out").exists()


def test_findings_that_every_scan_has_are_refused(site: Path) -> None:
    (site / "profile.toml").write_text(PROFILE.replace("multiclass", "multilabel").replace("softmax", "sigmoid"))
    with np.load(site / "data.npz") as file:
        kept = {name: file[name] for name in file.files}
    both = {f"{split}_labels": np.stack([np.ones(n, int), np.arange(n) % 2], 1) for split, n in
            (("train", 64), ("val", 8), ("test", 24))}  # fmt: skip
    np.savez(site / "data.npz", **(kept | both))
    result = run(site, "mpadvt")

    assert result.exit_code == 2
    assert "dark is in all scans or in none" in result.stderr


def test_masks_are_not_hardened(site: Path) -> None:
    (site / "profile.toml").write_text(PROFILE.replace("multiclass", "segmentation"))
    with np.load(site / "data.npz") as file:
        kept = {name: file[name] for name in file.files}
    masks = {f"{split}_labels": kept[f"{split}_images"] * 0 for split in ("train", "val", "test")}
    np.savez(site / "data.npz", **(kept | masks))
    result = run(site, "trades")

    assert result.exit_code == 2
    assert "segmentation" in result.stderr


@pytest.mark.parametrize(
    ("method", "options", "said"),
    [
        ("magic", [], "no method is called 'magic'"),
        ("vit", ["--option", "patch=5"], "no whole number of patches"),
        ("densenet", ["--option", "growth=0"], "above 0"),
        ("trades", ["--option", "weight"], "write name=value"),
        ("trades", ["--recipe", "depth=3"], "a recipe has no depth"),
        ("trades", ["--recipe", "weight_decay=lots"], "must be like 0.02"),
        ("trades", ["--eps", "1,x"], "--eps 1,x"),
        ("trades", ["--attacks", "magic"], "attacks are some of pgd, autoattack"),
    ],
)
def test_what_does_not_fit_is_named(site: Path, method: str, options: list[str], said: str) -> None:
    result = run(site, method, *options)

    assert result.exit_code == 2
    assert said in result.stderr
    assert not (site / "out").exists()


def test_a_recipe_is_told_how_far_scans_are_moved() -> None:
    told = words.spoken(words.recipe(Recipe(), ["mirror=true", "rotation_deg=2", "epochs=3"]))

    assert (told["mirror"], told["rotation_deg"], told["epochs"]) == (True, 2, 3)
    assert "augmentation" not in told


@pytest.mark.parametrize("told", ["epochs=0", "batch=1", "widths=[8]", "averaging=1", "peak_rate=0"])
def test_a_recipe_that_makes_no_sense_is_refused(told: str) -> None:
    with pytest.raises(DataError, match="recipe"):
        words.recipe(Recipe(), [told])


@pytest.mark.parametrize("name", ["dual_norm", "speckle", "feature_noise", "sign", "vit", "densenet"])
def test_every_network_becomes_a_file_that_detectors_can_be_fitted_for(name: str) -> None:
    """The graph is rebuilt, for any number of images, with the answers of the file."""
    profile, method = Profile.from_toml(PROFILE.encode()), named(name)
    recipe = words.recipe(method.recipe, TINY)
    nothing = torch.zeros(0, 1, SIDE, SIDE)
    torch.manual_seed(0)
    network = method.network(Course(nothing, torch.zeros(0), 2, Task.MULTICLASS, recipe, seed=0), None).eval()
    images = torch.rand(3, 1, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        expected = network((images + 1) / 2)
    written = export(Served(method.served(network), span_of(profile), Activation(profile.already_applied)), profile)
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])

    answers = torch.from_numpy(session.run(None, {"image": images.numpy()})[0])
    assert torch.allclose(answers, expected, atol=1e-4)
    assert torch.allclose(rebuilt(written)(images), answers, atol=1e-4)
    assert rebuilt(written).tap_names


def test_the_table_keeps_the_prose_and_tells_every_card(site: Path) -> None:
    card = json.loads(run(site, "plain", "--json").stdout)
    before = f"# Hardening\n\nProse.\n\n{hardening_results.MEASURED}\nOld figures.\n"
    page = hardening_results.document(before, "python -m lab.hardening_results", {"discs": {"plain": card}})

    assert page.startswith("# Hardening\n\nProse.\n\n## What was measured\n")
    assert "Old figures" not in page
    assert f"| `plain` | {100 * card['measured']['clean']['rate']:.1f} |" in page
    assert "| method | clean | pgd 2 | pgd 4 | s |" in page


def test_the_table_says_how_it_came_about_and_of_what_size_the_images_were(site: Path) -> None:
    page = site / "page.md"
    page.write_text(f"# Hardening\n\n{hardening_results.MEASURED}")
    recipes = [word for setting in TINY for word in ("--recipe", setting)]
    asked = ["--set", "data", "--method", "plain", *recipes, "--attacks", "pgd", "--eps", "2", "--size", "8"]
    places = ["--images", str(site), "--work", str(site / "work"), "--out", str(page), "--threads", "1"]
    CliRunner().invoke(hardening_results.main, [*asked, *places], catch_exceptions=False)

    with np.load(site / "work" / "data-8" / "data.npz") as small, np.load(site / "data.npz") as whole:
        means = whole["test_images"].astype(float).reshape(24, 8, 2, 8, 2).mean((2, 4))
        assert np.abs(small["test_images"] - means).max() <= 0.5
        assert (small["test_groups"] == whole["test_groups"]).all()
    text = page.read_text()
    assert "### data, 8 x 8 pixels" in text
    told = text.partition("Written by `")[2].partition("`")[0]
    assert told == "python -m lab.hardening_results " + " ".join(
        ["--set data", "--method plain", *(f"--recipe {each}" for each in TINY), "--attacks pgd", "--eps 2", "--size 8"]
    )


def test_the_page_lists_every_method() -> None:
    text = (Path(__file__).parents[2] / "docs" / "hardening.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|", text.partition("## How the figures")[0], re.MULTILINE)

    assert listed == list(METHODS)
