"""The tables of the real images: models of several seeds, side by side and together."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from lab.evaluation.grades import QUICK
from lab.image_results import FURTHER, LEVELS, SETS, compared, evaluated, main


def report(*, n_clean: int, flagged: int, misread: int, evaded: int, attacked: int = 40) -> dict[str, Any]:
    """What the table reads of a report.json."""
    entries = [
        {"name": name, "eps": level, "n_attacked": attacked, "n_success": misread, "evaded": list(range(evaded))}
        for name in ("pgd", "adaptive")
        for level in LEVELS
    ]
    return {
        "n_clean": n_clean, "clean_accuracy": 0.9, "fpr_measured": {"rate": flagged / n_clean}, "attacks": entries,
    }  # fmt: skip


class TestTrainingsSideBySide:
    """`compared`."""

    def test_seeds_are_taken_together_with_an_interval_and_hardened_models_are_not_among_them(self) -> None:
        table = compared(
            {
                "without defence, seed 0": report(n_clean=500, flagged=1, misread=30, evaded=4),
                "without defence, seed 1": report(n_clean=500, flagged=4, misread=40, evaded=8),
                "`trades`": report(n_clean=500, flagged=50, misread=1, evaded=0),
            }
        )
        rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in table.splitlines()}
        assert rows["without defence, seed 1"][1:4] == ["90.0", "0.8", "100.0"]
        assert rows["without defence, seed 1"][-1] == "20.0"
        assert rows["`trades`"][2:4] == ["10.0", "2.5"]
        assert rows["`trades`"][7] == "100.0"  # flagged, of the one that PGD misleads
        assert rows["without defence, seed 1"][7] == "80.0"  # 8 of 40 got past
        together = rows["2 seeds"]
        assert together[2].startswith("0.5 [0.2, 1.2")  # 5 of 1000
        assert together[3].startswith("87.5 [")  # 70 of 80
        assert together[-1].startswith("15.0 [8.0, 24.7")  # 12 of 80

    def test_an_attack_that_was_not_run_leaves_its_cell_empty(self) -> None:
        alone = report(n_clean=100, flagged=0, misread=0, evaded=0) | {"attacks": []}
        assert compared({"without defence, seed 0": alone}).strip().splitlines()[-1].endswith("| - |")

    def test_where_no_attack_succeeds_nothing_is_flagged_of_it(self) -> None:
        row = compared({"`trades`": report(n_clean=100, flagged=0, misread=0, evaded=0)}).strip().splitlines()[-1]
        assert row.strip("| ").split(" | ")[3:8] == ["0.0"] * 4 + ["-"]


def test_what_was_measured_is_found_again_only_for_the_same_detectors_attacks_and_grade() -> None:
    known = evaluated(b"manifest", ("pgd", "cw"), QUICK)
    assert evaluated(b"manifest", ("pgd", "cw"), QUICK) == known
    others = [
        evaluated(b"another", ("pgd", "cw"), QUICK),
        evaluated(b"manifest", ("pgd",), QUICK),
        evaluated(b"manifest", ("pgd", "cw"), QUICK.altered(40, None)),
    ]
    assert len({known, *others}) == 4


class TestThePage:
    """The command, on models, detectors and evaluations that lie in its work folder."""

    GRADE = QUICK.altered(40, 30)
    ASKED = ("--grade", "quick", "--images-each", "40", "--steps", "30", "--attacks", "pgd,cw")

    @pytest.fixture
    def site(self, tmp_path: Path) -> Path:
        splits = ("train", "val", "test")
        pixels = (np.arange(20 * 64) % 251).astype(np.uint8).reshape(20, 8, 8)
        arrays: dict[str, Any] = {f"{split}_images": pixels for split in splits}
        arrays |= {f"{split}_labels": np.arange(20) % 2 for split in splits}
        arrays |= {f"{split}_groups": np.array([f"{split} {place}" for place in range(20)]) for split in splits}
        for name in SETS:
            np.savez(tmp_path / f"{name}.npz", class_names=np.array(["a", "b"]), **arrays)
            self.measured(tmp_path / "work" / name, ("pgd", "cw"), f"## {name}")
            for folder in ("seed1", "hardening/trades"):
                self.measured(tmp_path / "work" / name / folder, FURTHER, "never shown")
        return tmp_path

    def measured(self, directory: Path, attacks: tuple[str, ...], chapter: str) -> None:
        """As the command leaves it."""
        manifest = json.dumps({"of": str(directory)}).encode()
        place = directory / evaluated(manifest, attacks, self.GRADE)
        place.mkdir(parents=True)
        (directory / "detectors").mkdir()
        (directory / "detectors" / "manifest.json").write_bytes(manifest)
        (directory / "model.onnx").write_bytes(b"a model that was trained")
        found = report(n_clean=100, flagged=1, misread=30, evaded=4) | {"attacks_left": 0}
        (place / "report.json").write_text(json.dumps(found))
        (place / "report.md").write_text(chapter + "\n")

    def written(self, site: Path, *options: str) -> str:
        out = site / "results.md"
        words = [*self.ASKED, "--images", str(site), "--work", str(site / "work"), "--out", str(out), *options]
        ended = CliRunner().invoke(main, words, catch_exceptions=False)
        assert ended.exit_code == 0
        return out.read_text()

    def test_it_has_a_chapter_a_set_and_names_the_command_that_writes_it(self, site: Path) -> None:
        page = self.written(site)
        assert "`python -m lab.image_results --images-each 40 --steps 30 --attacks pgd,cw`" in page
        assert [line for line in page.splitlines() if line.startswith("## ")] == [f"## {name}" for name in SETS]
        assert "Other trainings" not in page

    def test_further_models_stand_beside_the_first_where_they_are_asked_for(self, site: Path) -> None:
        options = ("--seeds", "brain_mri=2", "--hardened", "brain_mri=trades")
        page = self.written(site, *options)
        chapters = dict(zip(SETS, page.split("\n## ")[1:], strict=True))
        assert " ".join(options) in page
        assert "`trades`" in chapters["brain_mri"]
        assert "| 2 seeds |" in chapters["brain_mri"]
        assert "trades" not in chapters["chest_xray"] + chapters["breast_us"]
        assert "never shown" not in page

    def test_what_is_said_of_no_set_holds_for_all(self, site: Path) -> None:
        page = self.written(site, "--seeds", "2", "--hardened", "trades")
        assert page.count("| 2 seeds |") == page.count("| `trades` |") == len(SETS)

    @pytest.mark.parametrize(
        "words", [("--seeds", "0"), ("--seeds", "lung=2"), ("--hardened", "magic"), ("--hardened", "chest_xray=")]
    )
    def test_a_set_or_method_that_there_is_not_is_named(self, words: tuple[str, str]) -> None:
        ended = CliRunner().invoke(main, words)
        assert ended.exit_code == 2
        assert words[1] in ended.stderr
