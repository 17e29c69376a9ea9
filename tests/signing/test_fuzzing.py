"""The fuzzer finds what was planted for it, and nothing where nothing was."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FUZZ = Path(__file__).parents[1] / "fuzz"


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    """The script that `make fuzz` runs."""
    spec = importlib.util.spec_from_file_location("fuzz_run", FUZZ / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_run"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "planted", ["view_of_everything", "fragments_unchecked", "deep_items_unhashed", "der_length_unchecked"]
)
def test_a_planted_defect_is_found(planted: str, runner: ModuleType, tmp_path: Path) -> None:
    runner.FOUND = tmp_path
    run = runner.fuzz(runner.PLANTS[planted], f"-runs={runner.PLANTED_RUNS_MAX}", planted=planted, seed=3)

    assert run.broken in {
        "accepted, and the verified view is not that of any signed object",
        "read, and written another way",
    }


@pytest.mark.parametrize("target", ["walker", "view", "der"])
def test_nothing_is_found_where_nothing_is_planted(target: str, runner: ModuleType, tmp_path: Path) -> None:
    """The corpus, and a little beyond it."""
    runner.FOUND = tmp_path
    run = runner.fuzz(target, "-runs=400")

    assert (run.broken, run.executions >= 400) == ("", True)
