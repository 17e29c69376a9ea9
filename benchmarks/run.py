"""Runs every benchmark and writes docs/benchmarks.md: `make bench`."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from gateway.engine.process import KEPT_MEMORY
from report import PAGE, machine, markdown, read_back

BENCHMARKS = (
    "bench_verify.py",
    "bench_detection.py",
    "bench_denoisers.py",
    "bench_attacks.py",
    "bench_protect.py",
    "bench_audit.py",
)

QUIET = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **KEPT_MEMORY}
"""Threads that spin while they wait for others would measure the machine's other load; memory is kept as the worker
keeps it."""

_OPENING = """# Benchmarks

Every figure is taken side by side with what it is compared to, in one run, in turns: read the ratios, since the times
are those of one machine on one day. `make bench` runs all of them and writes this page.

Machine: {machine} Taken on {day}.
"""


def main() -> int:
    """Run each benchmark in a process of its own, so that none inherits another's threads or caches."""
    sections = [_OPENING.format(machine=machine(), day=f"{datetime.now(UTC):%Y-%m-%d}")]
    for name in BENCHMARKS:
        print(f"{name} …", file=sys.stderr, flush=True)
        command = [sys.executable, str(Path(__file__).with_name(name)), "--json"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=QUIET)
        if done.returncode != 0:
            print(f"{name} failed; {PAGE.name} is left as it was", file=sys.stderr)
            return 1
        section = markdown(read_back(done.stdout.splitlines()[-1]))
        print(section, flush=True)
        sections.append(section)
    PAGE.write_text("\n".join(sections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
