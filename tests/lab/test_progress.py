"""Long work shows how far it is, also where nobody looks at a terminal."""

import pytest

from lab.progress import progress


def test_a_log_gets_a_line_for_each_quarter_of_a_stage_and_stdout_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with progress() as watch:
        for done in range(101):
            watch("digging", done / 100)
        watch("filling in", 0.0)

    shown = capfd.readouterr()
    assert not shown.out
    stages = [line.partition(" s  ")[2] for line in shown.err.splitlines()]
    assert stages == ["digging 0 %", "digging 25 %", "digging 50 %", "digging 75 %", "digging 100 %", "filling in 0 %"]
