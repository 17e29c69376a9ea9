"""Rules for the whole test run: a test may be skipped only for a reason that stands here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

# Before torch is imported, here and in every process that a test starts: threads that outnumber the cores and spin
# while they wait make a busy machine many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SKIPS = ("needs shared data", "needs kubectl", "needs cuda")
"""How the reason of an allowed skip starts: real scans are not part of the source tree, Debian's kubectl is too old,
and not every build machine has a graphics processor."""

SKIPS_AT_A_DESK = (
    *SKIPS,
    "needs attack peers",
    "needs dcmtk",
    "needs dcmsign",
    "needs faketime",
    "needs orthanc",
    "needs postgresql",
    "needs prometheus",
    "needs rsyslog",
    "needs softhsm",
    "needs systemd",
    "needs mlserver",
    "needs pytriton",
    "needs tritonclient",
)
"""Without the right to install system packages these may be missing; on a build machine (CI=true) they may not."""


def allowed(reason: str) -> bool:
    """Whether a test may be skipped for this reason."""
    build_machine = os.environ.get("CI", "").lower() in {"1", "true"}
    return reason.lower().startswith(SKIPS if build_machine else SKIPS_AT_A_DESK)


def _refuse_unlisted(report: pytest.TestReport | pytest.CollectReport) -> None:
    """A skipped test proves nothing, so a skip that nobody agreed to counts as a failure."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if not allowed(reason.removeprefix("Skipped: ")):
        report.outcome = "failed"
        report.longrepr = f"skipped for a reason that tests/conftest.py does not list: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn the unlisted skip of a test into its failure."""
    report = yield
    _refuse_unlisted(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn the unlisted skip of a whole file into its failure."""
    report = yield
    _refuse_unlisted(report)
    return report


@pytest.fixture(scope="session")
def kept_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The small hospital that `scanward demo --keep` leaves, and what it printed; made once, to be looked at."""
    directory = tmp_path_factory.mktemp("demo") / "hospital"
    command = [sys.executable, "-m", "gateway.cli", "demo", "--keep", str(directory), "--json"]
    return directory, subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
