"""The fusion in rounds: whoever knows it gets past it less often, and more evidence never lowers its score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from blob_gateway import QUICK
from detectors.material import Material
from detectors.methods.fusion import Fusion, features, towards
from detectors.observation import LEVEL
from gateway.profile import Profile
from lab import fitting
from lab.cli import main
from lab.data import Split
from lab.sparring import Sparring
from lab.sparring_results import Slices, compare, document
from lab.workbench import Workbench, logits_of

FPR = 0.02


@pytest.fixture(scope="module")
def bench(fitted: fitting.Fitted, profile: Profile) -> Workbench:
    return Workbench(fitted.ensemble.probe.reference, profile, torch.device("cpu"), 0, lambda _stage, _share: None)


@pytest.fixture(scope="module")
def slices(bench: Workbench, parts: fitting.Parts) -> Slices:
    """Scans that no twin was trained on, and each of them for one use."""
    fresh = bench.span.to_unit(parts.b.images)
    return Slices(fresh[:48], fresh[48:148], fresh[148:300], bench.span.to_unit(parts.test.images[:30]))


@pytest.fixture(scope="module")
def material(bench: Workbench, fitted: fitting.Fitted, slices: Slices) -> Material:
    return bench.held_out(fitted.ensemble.probe, bench.span.from_unit(slices.held[:24]))


def test_who_knows_the_fusion_gets_past_it_less_often_after_the_rounds(
    bench: Workbench, fitted: fitting.Fitted, slices: Slices
) -> None:
    """On scans that it was not fitted on; a false alarm is as rare, and who does not know it is caught as often."""
    once, _, rounds = rows = compare(
        bench, fitted.ensemble, slices, rounds=2, budgets=(8.0,), steps=20, fpr=FPR, watch=lambda _stage, _share: None
    )

    assert once.alone[8.0]["rate"] >= 0.5
    assert rounds.alone[8.0]["rate"] <= once.alone[8.0]["rate"] - 0.1
    assert rounds.whole[8.0]["rate"] <= once.whole[8.0]["rate"] + 0.05
    assert rounds.clean["rate"] <= 0.1
    assert rounds.caught["rate"] >= once.caught["rate"] - 0.05
    assert "| after 2 rounds |" in document(rows, "--rounds 2", 48, 100, 2)


def test_rounds_are_the_same_when_they_are_fought_again_and_go_beyond_the_first(
    bench: Workbench, material: Material
) -> None:
    told: list[float] = []
    watched = replace(material, progress=told.append)
    first, second = (list(Sparring(bench, 1, FPR).after_each(each)) for each in (watched, material))

    assert told == [1.0]
    for one, two in zip(first, second, strict=True):
        assert all(torch.equal(value, two.state()[name]) for name, value in one.state().items())
    assert not torch.equal(first[0].state()["weights"], first[1].state()["weights"])


@pytest.mark.parametrize("rounds", [0, 1])
def test_more_evidence_never_lowers_the_score(bench: Workbench, material: Material, rounds: int) -> None:
    fusion = Sparring(bench, rounds, FPR).fit(material)
    found = features(material.look(material.clean, Fusion.needs))
    before = fusion.odds(found)

    for column, sign in enumerate(towards(found.shape[1])):
        more = found.clone()
        more[:, column] += sign * 3 * found.std(0)[column]
        assert bool((fusion.odds(more) >= before - 1e-5).all())


def test_no_weight_goes_against_what_its_number_tells() -> None:
    """Where attacks happen to leave one calm, the usual fit rewards calm elsewhere; the other ignores it."""
    draws = torch.Generator().manual_seed(0)
    clean, benign, attacked = torch.randn(3, 80, 11, generator=draws)
    attacked[:, 8] += 2.0
    attacked[:, 9] -= 1.0
    attacked[:, 0] += 1.0  # the twin holds the decision more firmly, which is no evidence

    usual, rising = (Fusion.of(clean, benign, attacked, rising=each).state()["weights"] for each in (False, True))

    assert usual[9] < 0 < min(usual[8], usual[0])
    assert rising[9] == rising[0] == 0 < rising[8]


def test_rounds_never_see_the_scans_that_order_and_promise(
    bench: Workbench, fitted: fitting.Fitted, parts: fitting.Parts
) -> None:
    """Other scans for A change the tails, and nothing of the fusion."""
    held, *others = (parts.b.take(torch.arange(*ends)) for ends in ((0, 24), (100, 140), (200, 240)))

    def weighed(a: Split) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        mine = replace(parts, a=a, held=held, rounds=1)
        members, *_ = fitting.weighed(bench, fitted.ensemble.probe, [], [Fusion.name], mine, FPR)
        ((fusion, tail, _home),) = members
        return fusion.state(), tail.state()

    (one, tail), (two, other) = (weighed(a) for a in others)

    assert all(torch.equal(value, two[name]) for name, value in one.items())
    assert not all(torch.equal(value, other[name]) for name, value in tail.items())


def test_those_that_are_held_back_are_other_patients(parts: fitting.Parts) -> None:
    rest = parts.in_rounds(2, seed=0)
    held = rest.fusing

    assert (rest.rounds, parts.in_rounds(0, seed=0)) == (2, parts)
    with pytest.raises(ValueError, match="held back"):
        replace(parts, rounds=1)
    assert len(rest.fit) + len(held) == len(parts.fit)
    assert not set(held.groups) & (set(rest.fit.groups) | set(rest.a.groups) | set(rest.b.groups))
    assert (rest.a, rest.b, rest.test) == (parts.a, parts.b, parts.test)


def test_a_fit_in_rounds_says_so_and_calibrates_as_any_other(
    site: Path, profile: Profile, parts: fitting.Parts, tmp_path: Path
) -> None:
    stages: list[tuple[str, float]] = []
    fitted = fitting.fit(
        (site / "model.onnx").read_bytes(), profile, parts, tmp_path, fpr=0.01, key=None, seed=0, fusion_rounds=1,
        recipes=(QUICK, QUICK), denoisers=("median",), watch=lambda stage, share: stages.append((stage, share)),
    )  # fmt: skip

    facts = json.loads(fitted.manifest)
    assert facts["fusion_rounds"] == 1
    assert facts["n_fit"] + facts["n_rounds"] + facts["n_a"] == 240
    assert facts["detectors"]["fusion"]["weight"] > 0
    assert facts["guarantee"] == "confident"
    assert ("fitting fusion", 1.0) in stages


def test_too_few_patients_to_hold_any_back_are_refused_before_any_work(site: Path, tmp_path: Path) -> None:
    with np.load(site / "data.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "few.npz", **arrays | {"train_groups": np.array([f"train{k // 48}" for k in range(240)])})
    given = {
        "--model": site / "model.onnx", "--profile": site / "profile.toml", "--data": tmp_path / "few.npz",
        "--out": tmp_path / "out", "--fusion-rounds": 1,
    }  # fmt: skip
    result = CliRunner().invoke(main, ["fit", *(str(part) for pair in given.items() for part in pair)])

    assert result.exit_code == 2
    assert "0 scans for the rounds of the fusion are too few; at least 20 are needed" in result.stderr


def test_an_attack_sees_the_model_as_it_is(bench: Workbench, fitted: fitting.Fitted, parts: fitting.Parts) -> None:
    """From stored grey levels, whatever range the model takes; what comes back is misread."""
    unit = bench.span.to_unit(parts.test.images[:8])

    assert torch.allclose(bench.target.logits(unit / LEVEL), logits_of(fitted.ensemble.probe)(unit), atol=1e-4)
