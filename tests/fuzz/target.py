"""One fuzzing process: `target.py walker|view|der CORPUS… [libFuzzer options]`, with a defect planted if asked for."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["signing"]):
    import signing.testing

from originals import Originals
from planted import PLANTED
from rules import DerRule, ViewRule, check_walker

PLANT_VARIABLE = "SCANWARD_FUZZ_PLANT"
DATA_BYTES_MAX = 1 << 30
"""Private memory of a fuzzing process. libFuzzer's own limit is off: it reads the peak resident size, which a process
inherits from whoever started it, so a large test run would be blamed on the input."""


def main() -> None:
    """Fuzz until libFuzzer has enough, or a rule is broken."""
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES_MAX, DATA_BYTES_MAX))
    name = sys.argv.pop(1)
    if plant := os.environ.get(PLANT_VARIABLE):
        PLANTED[plant][1]()
    with tempfile.TemporaryDirectory() as folder:
        originals = Originals.make(Path(folder))
    check = {"walker": lambda: check_walker, "view": lambda: ViewRule(originals).check,
             "der": lambda: DerRule(originals).check}[name]()  # fmt: skip
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    assert signing.testing
    main()
