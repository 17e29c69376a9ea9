"""Runs the fuzzer: finds the planted defects, then looks for real ones; prints executions and time."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOUND = ROOT / ".cache" / "fuzz"
SHARES = {"walker": 0.25, "view": 0.5, "der": 0.25}
LENGTHS = {"walker": 4096, "view": 96, "der": 256}
PLANTS = {
    "view_of_everything": "view",
    "fragments_unchecked": "view",
    "deep_items_unhashed": "view",
    "der_length_unchecked": "der",
}
PLANTED_RUNS_MAX = 60_000


@dataclass(frozen=True, slots=True)
class Run:
    """One fuzzing process, after its end."""

    target: str
    planted: str
    executions: int
    seconds: float
    broken: str
    """The rule that was broken, if one was; else what else ended the process."""


def fuzz(target: str, *limits: str, planted: str = "", seed: int = 1) -> Run:
    """Run one target until a limit or a broken rule; new inputs are kept in `.cache/fuzz`, not in the corpus."""
    grown = FOUND / (planted or target)
    grown.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "target.py"), target]
    command += [str(grown / "corpus"), str(HERE / "corpus" / target)] if not planted else []
    (grown / "corpus").mkdir(exist_ok=True)
    command += [f"-max_len={LENGTHS[target]}", "-len_control=0", f"-seed={seed}", "-print_final_stats=1", "-timeout=20"]
    command += ["-rss_limit_mb=0", f"-artifact_prefix={grown}/", *limits]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "SCANWARD_FUZZ_PLANT": planted}
    began = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, errors="replace", env=environment, check=False)
    seconds = time.monotonic() - began
    executions = re.search(r"number_of_executed_units: *(\d+)", ended.stderr)
    broken = re.search(r"^(?:\w+\.)*BrokenRuleError: (.*)$", ended.stdout + ended.stderr, re.MULTILINE)
    says = (
        broken[1]
        if broken
        else ""
        if ended.returncode == 0
        else f"ended with {ended.returncode}: {_last(ended.stderr)}"
    )
    return Run(target, planted, int(executions[1]) if executions else 0, seconds, says)


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if "Error" in line or "ERROR" in line]
    return (lines or text.splitlines() or [""])[-1][:200]


def main() -> int:
    """Exit 1 where a planted defect is not found, or a real one is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3)
    parser.add_argument("--seed", type=int, default=int(time.time()) & 0xFFFF)
    given = parser.parse_args()
    bad = 0
    print(f"seed {given.seed}\n{'target':8} {'planted':22} {'executions':>11} {'seconds':>8}  result")
    for planted, target in PLANTS.items():
        run = fuzz(target, f"-runs={PLANTED_RUNS_MAX}", planted=planted, seed=given.seed)
        bad += not run.broken
        _print(run, f"found: {run.broken}" if run.broken else "NOT FOUND")
    for target, share in SHARES.items():
        run = fuzz(target, f"-max_total_time={max(1, round(share * given.minutes * 60))}", seed=given.seed)
        bad += bool(run.broken)
        _print(run, f"BROKEN: {run.broken}; see {FOUND / target}" if run.broken else "every rule held")
    return 1 if bad else 0


def _print(run: Run, result: str) -> None:
    print(f"{run.target:8} {run.planted or '-':22} {run.executions:11} {run.seconds:8.1f}  {result}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
