"""The tables of the real images: models of several seeds, side by side and together."""

from typing import Any

from lab.evaluation.grades import QUICK
from lab.image_results import LEVELS, compared, evaluated


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
        together = rows["2 seeds"]
        assert together[2].startswith("0.5 [0.2, 1.2")  # 5 of 1000
        assert together[3].startswith("87.5 [")  # 70 of 80
        assert together[-1].startswith("15.0 [8.0, 24.7")  # 12 of 80

    def test_an_attack_that_was_not_run_leaves_its_cell_empty(self) -> None:
        alone = report(n_clean=100, flagged=0, misread=0, evaded=0) | {"attacks": []}
        assert compared({"without defence, seed 0": alone}).strip().splitlines()[-1].endswith("| - |")


def test_what_was_measured_is_found_again_only_for_the_same_detectors_attacks_and_grade() -> None:
    known = evaluated(b"manifest", ("pgd", "cw"), QUICK)
    assert evaluated(b"manifest", ("pgd", "cw"), QUICK) == known
    others = [
        evaluated(b"another", ("pgd", "cw"), QUICK),
        evaluated(b"manifest", ("pgd",), QUICK),
        evaluated(b"manifest", ("pgd", "cw"), QUICK.altered(40, None)),
    ]
    assert len({known, *others}) == 4
