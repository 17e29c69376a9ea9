"""The figures about drift can be made anew by one command."""

from pathlib import Path

from click.testing import CliRunner

from lab.drift_results import main


def test_the_report_and_its_plots_are_written(tmp_path: Path) -> None:
    out = tmp_path / "results-drift.md"

    done = CliRunner().invoke(main, ["--slices", "2", "--streams", "1", "--threads", "1", "--out", str(out)])

    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert "| unchanged | 0/100 | - | - |" in text
    for plot in tmp_path.glob("*.png"):
        assert f"]({plot.name})" in text
    assert len(list(tmp_path.glob("*.png"))) == 2
