"""A guarded model is attacked, and the report says what was seen, in the form that others rely on."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from gateway.profile import Profile
from lab.attacks.attack import Attacked
from lab.cli import main
from lab.evaluation import grades
from lab.evaluation.attacks import ALL
from lab.evaluation.choices import CHOICES
from lab.evaluation.evaluate import evaluate
from lab.evaluation.files import write
from lab.evaluation.grades import Grade
from lab.evaluation.page import page
from lab.evaluation.report import Report

EXAMPLE = Path(__file__).parents[3] / "deploy" / "threat-model.toml"


@pytest.fixture(scope="module", autouse=True)
def small() -> Any:
    """A grade for tests, so that attacks take seconds."""
    before = dict(grades.GRADES)
    grades.GRADES["quick"] = Grade("quick", images=24, steps=25, restarts=1, queries=60)
    yield
    grades.GRADES.update(before)


def run(site: Path, *arguments: str | Path) -> Result:
    given = [
        "evaluate",
        "--model",
        site / "model.onnx",
        "--profile",
        site / "profile.toml",
        "--detectors",
        site / "out",
    ]
    return CliRunner().invoke(main, [str(each) for each in (*given, "--data", site / "data.npz", *arguments)])


@pytest.fixture(scope="module")
def report(site: Path, fitted: object, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("evaluation")
    result = run(site, "--eps", "2,8", "--out", out, "--shift", site / "data.npz", "--adaptive", "--json")
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    assert json.loads((out / "report.json").read_text()) == document
    assert (out / "report.md").read_text().startswith("## data")
    report_page = (out / "report.html").read_text()
    assert report_page == page(document, "data")
    return document


def test_the_page_holds_the_figures_and_loads_nothing(report: dict[str, Any]) -> None:
    shown = page(report, "<chest> & others")

    assert "<h1>&lt;chest&gt; &amp; others</h1>" in shown
    assert f"{entry(report, 'adaptive', 8)['evasion']:.1%}" in shown
    assert "who holds the detectors" in shown
    assert not re.search(r"https?:|<script|src=|@import|url\(", shown)
    for name in report["detectors"]:
        assert f"<b>{name}</b>" in shown


def test_the_page_says_so_where_no_informed_attacker_was_tried(report: dict[str, Any]) -> None:
    blind = report | {"attacks": [each for each in report["attacks"] if each["tier"] != "adaptive"]}

    assert "No attacker who knows the detectors was tried" in page(blind, "data")


def test_what_was_found_before_the_end_is_kept(site: Path, fitted: object, tmp_path: Path) -> None:
    class EndedError(Exception):
        pass

    kept: list[Report] = []

    def keep(found: Report) -> None:
        kept.append(found)
        write(found, tmp_path, "cut short")
        if len(kept) == 2:
            raise EndedError

    with pytest.raises(EndedError):
        evaluate(
            (site / "model.onnx").read_bytes(), Profile.load(site / "profile.toml"), site / "out",
            (site / "out" / "manifest.json").read_bytes(), site / "data.npz", attacks=["fgsm"], levels=(1, 2, 4),
            grade=grades.GRADES["quick"], keep=keep,
        )  # fmt: skip

    document = json.loads((tmp_path / "report.json").read_text())
    assert [each["eps"] for each in document["attacks"]] == [1, 2]
    assert document["attacks_left"] == 1
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.md", "report.html"}


def entry(report: dict[str, Any], name: str, eps: float | None) -> dict[str, Any]:
    (found,) = [each for each in report["attacks"] if each["name"] == name and each["eps"] == eps]
    return dict(found)


def test_curves_are_told_at_the_same_thresholds_for_all(report: dict[str, Any]) -> None:
    found, fprs = entry(report, "pgd", 8), report["roc_fpr"]

    assert (fprs[0], fprs[-1]) == (0.0, 1.0)
    for worth in (found["ensemble"], *found["detectors"].values()):
        assert len(worth["roc"]) == len(fprs)
        assert worth["roc"] == sorted(worth["roc"])
        assert worth["roc"][-1] == 1.0
    risk = found["risk_coverage"]["risk"]
    assert risk == sorted(risk, reverse=True)
    assert risk[0] <= found["success_rate_undefended"]


def test_each_scan_that_evaded_is_named_by_its_place_and_lost_in_the_worst_case(report: dict[str, Any]) -> None:
    for each in report["attacks"]:
        assert len(each["evaded"]) == round(each["evasion"] * each["n_attacked"])
    (worst,) = [row for row in report["worst_case"] if row["eps"] == 8]
    assert set(entry(report, "adaptive", 8)["evaded"]) <= set(worst["lost"]) <= set(range(60))
    assert worst["any"]["rate"] >= worst["uninformed"]["rate"]


def test_only_the_informed_attacker_tells_his_curve(report: dict[str, Any]) -> None:
    for each in report["attacks"]:
        assert (each["convergence"] is not None) == (each["tier"] == "adaptive")
    (start,) = entry(report, "adaptive", 8)["convergence"]["starts"]
    assert len(start) == 26


@pytest.mark.parametrize(("evasion", "code", "word"), [(1.0, 0, "passed"), (0.0, 1, "failed")])
def test_a_threat_model_is_tried_judged_and_told_to_a_build_server(
    site: Path, fitted: object, tmp_path: Path, evasion: float, code: int, word: str
) -> None:
    (tmp_path / "threat.toml").write_text(
        'name = "ward"\ngrade = "quick"\n[clean]\nfalse_positive_rate_max = 0.2\naccuracy_min = 0.5\n'
        f'[[attack]]\ntier = "oblivious"\nnames = ["fgsm"]\nbudgets = [8]\nevasion_max = {evasion}\n'
    )
    given = ("--threat-model", tmp_path / "threat.toml", "--junit", tmp_path / "gate.xml", "--out", tmp_path)

    result = run(site, *given, "--images", "6", "--json")

    assert result.exit_code == code, result.stderr
    document = json.loads(result.stdout)
    assert [(each["name"], each["eps"]) for each in document["attacks"]] == [("fgsm", 8)]
    assert document["gate"]["checks"][-1]["outcome"] == word
    assert json.loads((tmp_path / "report.json").read_text()) == document
    assert ("<failure" in (tmp_path / "gate.xml").read_text()) == (code == 1)
    assert f": {word}." in (tmp_path / "report.md").read_text()


def test_it_holds_every_key_of_the_contract(report: dict[str, Any]) -> None:
    assert set(report) >= {
        "schema", "grade", "threat_model", "seeds", "model", "profile", "detectors", "dataset", "n_clean", "target_fpr",
        "fpr_measured", "clean_accuracy", "attacks", "null_attack",
    }  # fmt: skip
    assert set(report["fpr_measured"]) == {"rate", "low", "high", "n"}
    for each in report["attacks"]:
        assert set(each) >= {
            "name", "eps", "tier", "n_attacked", "n_success", "success_rate_undefended", "detectors", "ensemble",
            "evasion", "adversarial_risk", "accuracy_of_admitted", "denoised_accuracy", "norm_linf_levels", "ssim",
        }  # fmt: skip
        if each["n_success"]:
            assert set(each["ensemble"]) >= {"auroc", "tpr_at_fpr1", "tpr_at_fpr5"}
            assert set(each["detectors"]) == set(report["detectors"])
    assert {each["name"] for each in report["attacks"]} == {*ALL, "adaptive"}


def test_attacks_keep_their_budget_and_larger_ones_succeed_more(report: dict[str, Any]) -> None:
    small, large = entry(report, "pgd", 2), entry(report, "pgd", 8)

    assert small["norm_linf_levels"] <= 2
    assert large["norm_linf_levels"] <= 8
    assert small["success_rate_undefended"] <= large["success_rate_undefended"]
    assert large["success_rate_undefended"] > 0.8
    assert large["ssim"] < small["ssim"] < 1


def test_what_evades_is_misread_and_not_flagged(report: dict[str, Any]) -> None:
    found = entry(report, "pgd", 8)

    missed = found["n_success"] - round(found["ensemble"]["tpr_at_fpr1"] * found["n_success"])
    assert round(found["evasion"] * found["n_attacked"]) == missed
    assert found["adversarial_risk"]["low"] <= found["evasion"] <= found["adversarial_risk"]["high"]
    assert found["ensemble"]["tpr_at_fpr1"] <= found["ensemble"]["tpr_at_fpr5"]
    assert found["ensemble"]["auroc"] > 0.9


def test_a_carried_attack_is_another_tier(report: dict[str, Any]) -> None:
    assert {each["tier"] for each in report["attacks"] if each["name"] == "transfer"} == {"transfer"}
    assert entry(report, "transfer", 8)["n_success"] <= entry(report, "pgd", 8)["n_success"]


def test_the_informed_attacker_has_a_tier_of_his_own_and_does_better(report: dict[str, Any]) -> None:
    assert entry(report, "adaptive", 8)["tier"] == "adaptive"
    assert entry(report, "adaptive", 8)["evasion"] > entry(report, "pgd", 8)["evasion"]


def test_scans_as_they_are_are_flagged_as_often_as_a_shift_to_themselves(report: dict[str, Any]) -> None:
    assert report["shift"]["data.npz"] == report["fpr_measured"]
    assert report["null_attack"]["by_change"]["saved again"]["n"] == 24
    assert report["null_attack"]["flag_rate"] == max(e["rate"] for e in report["null_attack"]["by_change"].values())


def test_a_grade_with_other_numbers_says_so(site: Path, fitted: object) -> None:
    given = ("--attacks", "fgsm", "--eps", "4", "--images", "5", "--steps", "3", "--json")
    document = json.loads(run(site, *given).stdout)

    assert document["grade"] == "quick, 5 images, 3 steps"
    assert document["attacks"][0]["n_attacked"] == 5


def test_the_same_seed_gives_the_same_report(site: Path, fitted: object) -> None:
    chosen = ("--attacks", "pgd,square", "--eps", "4", "--seed", "3", "--json")

    first, second = run(site, *chosen), run(site, *chosen)

    assert first.stdout == second.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--attacks", "pgd,magic"), "no attack is called magic"),
        (("--attacks", "apgd"), "no attack is called apgd (here apgd-ce, apgd-dlr)"),
        (("--eps", "2,-1"), "a budget is a whole number of grey levels, from 1 on, not -1"),
        (("--eps", "1,0.5"), "not 0.5"),
        (("--eps", "1.9", "--attacks", "pgd"), "not 1.9"),
        (("--eps", "inf"), "not inf"),
        (("--eps", "0.5", "--adaptive", "--attacks", "deepfool"), "not 0.5"),
        (("--eps", "two"), "no list of numbers"),
        (("--junit", "gate.xml"), "nothing to pass or fail without --threat-model"),
        (("--threat-model", str(EXAMPLE), "--eps", "2"), "--eps: --threat-model says what is tried"),
    ],
)
def test_what_cannot_be_run_is_said_before_any_work(
    site: Path, fitted: object, arguments: tuple[str, ...], sentence: str
) -> None:
    result = run(site, *arguments)

    assert result.exit_code == 2
    assert sentence in result.stderr


def test_an_attack_that_breaks_is_no_claim_that_is_not_met(
    site: Path, fitted: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build server must not take a defect for a model that failed its gate."""

    class Broken:
        name, eps = "fgsm", 8.0

        def __call__(self, *_: object) -> Attacked:
            raise RuntimeError("the network fell over")

    monkeypatch.setitem(CHOICES, "fgsm", replace(CHOICES["fgsm"], make=lambda _asked: Broken()))
    (tmp_path / "threat.toml").write_text(
        'name = "ward"\ngrade = "quick"\n[clean]\nfalse_positive_rate_max = 0.2\naccuracy_min = 0.5\n'
        '[[attack]]\ntier = "oblivious"\nnames = ["fgsm"]\nbudgets = [8]\nevasion_max = 1.0\n'
    )

    result = run(site, "--threat-model", tmp_path / "threat.toml", "--junit", tmp_path / "gate.xml", "--images", "6")

    assert result.exit_code == 2
    assert "the network fell over" in result.stderr
    assert "Traceback" in result.stderr
    assert not (tmp_path / "gate.xml").exists()


def test_a_data_set_without_test_scans_is_refused(site: Path, fitted: object, tmp_path: Path) -> None:
    with np.load(site / "data.npz") as file:
        kept = {name: file[name] for name in file.files if not name.startswith("test_")}
    np.savez(tmp_path / "data.npz", **kept)
    given = [
        "evaluate",
        "--model",
        site / "model.onnx",
        "--profile",
        site / "profile.toml",
        "--detectors",
        site / "out",
    ]

    result = CliRunner().invoke(main, [str(each) for each in (*given, "--data", tmp_path / "data.npz")])

    assert result.exit_code == 2
    assert "there are no test scans" in result.stderr
