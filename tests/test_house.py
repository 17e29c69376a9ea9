"""The house rules, as tests: who may import whom, how long a file may be, what no text may say."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("detectors", "gateway", "lab", "signing")
GENERATED = ROOT / "gateway" / "api"
TEST_FOLDERS_OF_THEIR_OWN = {"assets", "e2e", "fuzz", "simulators"}
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
WEIGHTS_BYTES_MAX = 3_000_000
BROUGHT_ALONG = {
    "pydantic-core",  # pydantic requires one version of it exactly
    "scipy",  # fits calibrations, for the lab, in code that lives beside what it fits
}

FOREIGN = re.compile(
    "|".join(
        [
            r"(?<![\w./])/(?:work|farm|home|root|Users)/",  # a path that exists on one machine alone
            r"\bpypi"
            + r"\.org|\bpython"
            + r"hosted\b|\bnpm"
            + r"js\b|\bdeb\.deb"
            + r"ian\b",  # where a package came from
            r"\b(?:TO" + r"DO|FIX" + r"ME)\b",  # left for later
            r"\bissues? #?\d+\b",
        ]
    )
)
MOCKS = re.compile(r"\bunittest\.mo" + r"ck\b|\bMagic" + r"Mock\b")


def tracked(*patterns: str) -> list[Path]:
    """Files of the project: committed, or new and not ignored."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [path for line in listing.stdout.splitlines() if (path := ROOT / line).is_file()]


def written() -> list[Path]:
    """Python files that people write."""
    return [path for path in tracked("*.py") if GENERATED not in path.parents]


def named(path: Path) -> str:
    """The path as people say it."""
    return path.relative_to(ROOT).as_posix()


def test_rooms_import_only_what_the_contracts_allow() -> None:
    """The contracts stand in pyproject.toml, where `make lint` reads them too."""
    command = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_no_other_distribution_owns_our_names() -> None:
    """The import names are short, so a stranger's package could shadow them."""
    owners = packages_distributions()

    assert {name: set(owners.get(name, [])) - {"scanward"} for name in ROOMS} == {name: set() for name in ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_declared_dependencies(room: str) -> None:
    """What another package happens to bring along today may be gone tomorrow."""
    requirements = [Requirement(line) for line in requires("scanward") or []]
    extras = ("", "lab") if room == "lab" else ("", "pkcs11", "postgres")
    declared = {canonicalize_name(each.name) for each in requirements if _wanted(each, extras)} | BROUGHT_ALONG
    owners = packages_distributions()
    undeclared = {
        f"{named(path)}: {name}"
        for path in written()
        if path.relative_to(ROOT).parts[0] == room
        for name in _imported(path) - sys.stdlib_module_names - set(ROOMS)
        if declared.isdisjoint(canonicalize_name(owner) for owner in owners.get(name, [f"python-{name}"]))
    }

    assert undeclared == set()


def _wanted(requirement: Requirement, extras: Sequence[str]) -> bool:
    return requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras)


def _imported(path: Path) -> set[str]:
    """First names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".", 1)[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".", 1)[0])
    return names


def test_no_file_is_longer_than_a_full_file() -> None:
    lengths = {named(path): len(path.read_text().splitlines()) for path in written()}

    assert {name: lines for name, lines in lengths.items() if lines > FILE_LINES_MAX} == {}


def test_no_function_is_longer_than_a_full_function() -> None:
    long = {
        f"{named(path)}:{node.lineno} {node.name}": lines
        for path in written()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > FUNCTION_LINES_MAX
    }

    assert long == {}


def test_every_module_says_its_one_job_first() -> None:
    """The first line of a module is a sentence, so that a listing of first lines is a map of the house."""

    def says(path: Path) -> bool:
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n", 1)[0].strip()
        return len(first.split()) > 1

    assert [named(path) for path in written() if not says(path)] == []


def test_no_text_speaks_of_anything_but_the_project() -> None:
    """A path, a host or a note to oneself is true in one place only."""
    found = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{named(path)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(lines, 1)
            if FOREIGN.search(line)
        ]

    assert found == []


def test_nothing_is_tested_against_a_stand_in() -> None:
    """Real parts only: what a stand-in promises, the part may not keep."""
    assert [named(path) for path in written() if MOCKS.search(path.read_text())] == []


def test_tests_mirror_the_code() -> None:
    """Who looks for the tests of a room finds them under its name, and no two files share one."""
    tests = [path for path in tracked("tests/*.py") if path.name.startswith("test_")]
    folders = {path.parent.relative_to(ROOT / "tests") for path in tests} - {Path()}
    strangers = [
        folder.as_posix()
        for folder in folders
        if folder.parts[0] not in TEST_FOLDERS_OF_THEIR_OWN and not (ROOT / folder).is_dir()
    ]
    untested = [room for room in ROOMS if not any(folder.parts[0] == room for folder in folders)]
    twice = [name for name, count in Counter(path.name for path in tests).items() if count > 1]

    assert (strangers, untested, twice) == ([], [], [])
    assert tracked("tests/**/__init__.py", "tests/__init__.py") == []


def test_generated_stubs_are_fresh(tmp_path: Path) -> None:
    """gateway/api is what proto/ says, no more and no less."""
    sources = sorted((ROOT / "proto").rglob("*.proto"))
    out = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "proto"), *out, *map(str, sources)]
    subprocess.run(command, cwd=ROOT, check=True)

    fresh = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*.py*")}
    committed = {
        named(path): path.read_bytes()
        for path in tracked("gateway/api/*.py", "gateway/api/*.pyi")
        if "_pb2" in path.name
    }

    assert sorted(fresh) == sorted(committed)
    assert [name for name in fresh if fresh[name] != committed[name]] == [], "run `make stubs`"


def test_committed_weights_stay_small() -> None:
    """A clone stays quick; weights are safetensors or ONNX, never pickle."""
    large = {named(path): size for path in tracked() if (size := path.stat().st_size) > WEIGHTS_BYTES_MAX}
    pickles = [named(path) for path in tracked("*.pt", "*.pth", "*.pkl", "*.pickle", "*.joblib", "*.ckpt")]

    assert (large, pickles) == ({}, [])


@pytest.mark.parametrize(
    ("reason", "result"),
    [
        ("needs shared data: no such folder", "1 skipped"),
        ("flaky on Tuesdays", "1 failed"),
    ],
)
def test_only_listed_skips_pass(tmp_path: Path, reason: str, result: str) -> None:
    """A skipped test proves nothing, so each reason is agreed in tests/conftest.py."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_one.py").write_text(f"import pytest\n\ndef test_one():\n    pytest.skip({reason!r})\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ, "CI": "true"}
    )

    assert result in done.stdout.splitlines()[-1]
