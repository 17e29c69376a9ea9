"""A family that the fusion is not shown is left out alone, and what is then measured is that family."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from detectors.artifact import Artefact
from detectors.calibration import ConformalCalibration
from detectors.ensemble import join
from detectors.models.kinds import rebuilt
from gateway.profile import Profile
from lab import data, fitting
from lab.data import DataError
from lab.development import Family, simulate
from lab.evaluation.grades import Grade
from lab.families import FAMILY_OF, chapter, main, measured, refit
from lab.training import export
from lab.victims import Victim
from lab.workbench import Workbench

TINY = Grade("tiny", images=6, steps=4, restarts=1, queries=20)
NOTHING = frozenset[Family]()
FUSED = (Family.GRADIENT, Family.SMOOTH, Family.CARRIED)
FIGURES = b"""
name = "figures"
version = "1"
task = "multiclass"
classes = ["disc", "square", "bar"]
[input]
name = "x"
layout = "NCHW"
channels = 1
size = [24, 24]
range = [0.0, 1.0]
"""


@pytest.fixture(scope="module")
def guarded(site: Path, profile: Profile, fitted: fitting.Fitted) -> Victim:
    return Victim(site / "profile.toml", site / "model.onnx", data.load(site / "data.npz", profile))


@pytest.fixture(scope="module")
def bench(guarded: Victim, fitted: fitting.Fitted) -> Workbench:
    reference = fitted.ensemble.probe.reference
    return Workbench(reference, guarded.profile, torch.device("cpu"), 0, lambda _stage, _share: None)


def refitted(guarded: Victim, site: Path, out: Path, without: frozenset[Family]) -> Artefact:
    manifest = refit(guarded, site / "out", out, without, 0, lambda _stage, _share: None)
    model = guarded.model_file.read_bytes()
    return Artefact.load(out, manifest, model, guarded.profile.sha256, torch.device("cpu"))


@pytest.fixture(scope="module")
def uncarried(guarded: Victim, site: Path, tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    """Fitted without attacks that carry over."""
    return refitted(guarded, site, tmp_path_factory.mktemp("uncarried"), frozenset({Family.CARRIED}))


def states(artefact: Artefact | fitting.Fitted) -> dict[str, dict[str, Tensor]]:
    return {each.detector.name: each.detector.state() for each in artefact.ensemble.members}


def alike(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_family_is_left_out_and_the_others_stay_as_they_were(figures: Any) -> None:
    profile = Profile.from_toml(FIGURES)
    reference = rebuilt(export(figures.network, profile))
    bench = Workbench(reference, profile, torch.device("cpu"), 0, lambda _stage, _share: None)
    probe, unit = bench.probe({}), figures.images[:16] / 255
    every = set(FUSED)

    def rounds(seeds: range, **how: Any) -> Tensor:
        return torch.cat([simulate(bench.model, unit, device=bench.device, seed=seed, **how).images for seed in seeds])

    whole = bench.held_out(probe, unit)
    alone = {family: bench.held_out(probe, unit, without=every - {family}).attacked for family in FUSED}
    rest = bench.held_out(probe, unit, without={Family.SMOOTH})

    assert torch.equal(alone[Family.GRADIENT], rounds(range(200, 203)))
    assert torch.equal(alone[Family.SMOOTH], rounds(range(203, 205), family=Family.SMOOTH))
    carried = rounds(range(205, 206), family=Family.CARRIED, guide=bench.model)  # there are no twins
    assert torch.equal(alone[Family.CARRIED], carried)
    assert min(map(len, alone.values())) > 0
    assert torch.equal(whole.attacked, torch.cat(list(alone.values())))
    assert torch.equal(rest.attacked, torch.cat([alone[Family.GRADIENT], alone[Family.CARRIED]]))
    assert torch.equal(rest.benign, whole.benign)


def test_members_are_not_chosen_by_it_either(bench: Workbench, fitted: fitting.Fitted, parts: fitting.Parts) -> None:
    images = parts.a.images[:20]
    unit = fitted.ensemble.probe.span.to_unit(images)

    whole, trial = (
        bench.trial(fitted.ensemble, images, 0.05, without=without) for without in (NOTHING, set(FUSED[1:]))
    )

    own = [simulate(bench.model, unit, device=bench.device, seed=seed).images for seed in (300, 301, 302)]
    assert whole is not None
    assert len(whole.attacked["fusion"]) > len(trial.attacked["fusion"]) == len(torch.cat(own)) > 0


def test_with_every_family_left_out_there_is_nothing_to_learn_from(
    bench: Workbench, fitted: fitting.Fitted, parts: fitting.Parts
) -> None:
    with pytest.raises(DataError, match="nothing to learn"):
        bench.held_out(fitted.ensemble.probe, parts.a.images[:4], without=set(FUSED))


def test_with_every_family_shown_the_fusion_is_that_of_the_fit(
    guarded: Victim, site: Path, fitted: fitting.Fitted, tmp_path: Path
) -> None:
    again = refitted(guarded, site, tmp_path, NOTHING)

    assert alike(states(again)["fusion"], states(fitted)["fusion"])
    scans = guarded.images.test.images
    assert torch.allclose(
        again.ensemble.examine(scans).p_value, fitted.ensemble.examine(scans).p_value, atol=0.01
    )  # fmt: skip


def test_only_the_fusion_changes_with_a_family_left_out(uncarried: Artefact, fitted: fitting.Fitted) -> None:
    before, after = states(fitted), states(uncarried)

    assert set(after) == {"twinM", "twinS", "gradient_residual", "fusion"}
    assert [name for name in after if not alike(before[name], after[name])] == ["fusion"]
    twins, others = (each.ensemble.probe.twins for each in (fitted, uncarried))
    unit = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(twins[name].look(unit)[0], others[name].look(unit)[0]) for name in twins)
    assert uncarried.manifest["without"] == ["carried over"]


def test_the_threshold_comes_from_b_alone(uncarried: Artefact, bench: Workbench, parts: fitting.Parts) -> None:
    ensemble = uncarried.ensemble
    detectors = [member.detector for member in ensemble.members]

    def rule(scans: data.Split) -> dict[str, Tensor]:
        scores = bench.scores(ensemble.probe, detectors, scans.images)
        return ConformalCalibration.fit(join(ensemble.members, ensemble.channels, scores), 0.01).state()

    assert alike(ensemble.conformal.state(), rule(parts.b))


def test_detectors_of_other_images_are_refused(guarded: Victim, site: Path, tmp_path: Path) -> None:
    other = replace(guarded, images=replace(guarded.images, sha256="0" * 64))

    with pytest.raises(DataError, match="other images"):
        refitted(other, site, tmp_path, NOTHING)


def test_where_nothing_was_fitted_the_command_says_what_leaves_detectors(tmp_path: Path) -> None:
    given = ["--images", tmp_path, "--set", "chest_xray", "--work", tmp_path]

    found = CliRunner().invoke(main, [str(each) for each in given])

    assert found.exit_code == 2
    assert "make results-images" in found.stderr
    assert list(tmp_path.iterdir()) == []


def test_each_attack_is_measured_with_its_family_left_out_and_what_is_done_is_kept(
    guarded: Victim, site: Path, tmp_path: Path
) -> None:
    def found() -> str:
        reports = measured(guarded, site / "data.npz", site / "out", tmp_path, TINY, 0)
        assert {each["name"] for each in reports[None]["attacks"]} == set(FAMILY_OF)
        for family in (Family.SMOOTH, Family.CARRIED):
            (attack,) = {each["name"] for each in reports[family]["attacks"]}
            assert FAMILY_OF[attack] is family
            theirs, ours = (
                [each["n_success"] for each in reports[key]["attacks"] if each["name"] == attack]
                for key in (None, family)
            )
            assert theirs == ours  # the attacks are the same, whoever looks
        return chapter("blobs", reports)

    first = found()
    (kept,) = tmp_path.glob("*/without-smooth/evaluation-tiny-*/report.json")
    report = json.loads(kept.read_text())
    kept.write_text(json.dumps(report | {"fpr_measured": {"rate": 0.1234, "low": 0.1, "high": 0.2, "n": 60}}))
    again = found()

    rows = {line.split(" | ")[0].removeprefix("| "): line.split(" | ")[1:] for line in first.splitlines()}
    assert (rows["low-frequency, 8 levels"][0], rows["transfer, 1 level"][0]) == ("smooth", "carried over")
    assert rows["square, 4 levels"][0] == rows["patch"][0] == "never shown"
    assert rows["low-frequency, 8 levels"][1].endswith("/6")
    assert rows["patch"][3] == rows["patch"][5] == "-"
    assert "low-frequency, all" in rows
    assert "patch, all" not in rows
    assert "| without smooth |" in first
    assert "12.3% [10.0, 20.0]" in again
    assert "12.3% [10.0, 20.0]" not in first
