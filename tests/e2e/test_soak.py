"""A minute at 70 % load: memory stays, descriptors are given back, every scan is answered; `make soak` for longer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "soak.py"


@pytest.mark.timeout(400)
def test_a_minute_of_load_leaves_nothing_behind(tmp_path: Path) -> None:
    plot = tmp_path / "soak.png"
    command = [sys.executable, str(SOAK), "--seconds", "60", "--plot", str(plot)]

    done = subprocess.run(command, capture_output=True, text=True, check=False)

    print(f"\n{done.stdout}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["scans"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
