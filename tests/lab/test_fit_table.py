"""What a fit says at its end: whole names, what is promised, and what could not be compared."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from detectors.calibration import ConformalCalibration
from detectors.ensemble import Ensemble
from detectors.errors import InputError
from detectors.worth import Worth
from lab import fit_table, joining
from lab.fitting import Fitted


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


def test_names_are_whole_in_a_narrow_window(fitted: Fitted, capsys: pytest.CaptureFixture[str]) -> None:
    names = [member.detector.name for member in fitted.ensemble.members]
    of_four = fitted.measured | {"pgd": dict.fromkeys("1248", fitted.measured["pgd"]["8"])}

    fit_table.show(replace(fitted, measured=of_four, worths=dict.fromkeys(names, Worth(0.5, 0.1, None))))

    said = capsys.readouterr().out
    assert "gradient_residual" in names
    assert all(said.count(name) >= 2 for name in names)
    assert max(map(len, said.splitlines())) <= 80


def test_the_last_line_says_what_is_promised(fitted: Fitted, capsys: pytest.CaptureFixture[str]) -> None:
    fit_table.show(fitted)

    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "guarantee: 1 % of clean scans flagged at most, with 95 % confidence, 300 scans"


def test_it_says_where_one_scan_ends_what_large_studies_go_by(
    fitted: Fitted, capsys: pytest.CaptureFixture[str]
) -> None:
    fit_table.show(fitted)
    assert fit_table.ENDS not in capsys.readouterr().out

    usual = fitted.ensemble.conformal.state()["statistics"]
    spoilt = ConformalCalibration.fit(torch.cat([usual[:-1], usual[-1:] + 60]), 0.01)
    ensemble = fitted.ensemble
    ended = Ensemble(ensemble.probe, ensemble.members, ensemble.channels, spoilt)
    fit_table.show(replace(fitted, ensemble=ended))
    assert fit_table.ENDS in capsys.readouterr().out


def test_a_marginal_guarantee_is_called_an_average(fitted: Fitted) -> None:
    facts = json.loads(fitted.manifest) | {"guarantee": "marginal", "n_b": 120}

    said = fit_table.promised(facts)

    assert said == "guarantee: 1 % of clean scans flagged at most, on average over calibrations, 120 scans"


def test_it_is_said_that_members_were_not_compared(fitted: Fitted, capsys: pytest.CaptureFixture[str]) -> None:
    count = json.loads(fitted.manifest)["n_a"]

    fit_table.show(replace(fitted, worths={}))

    assert f"A has {count} clean scans, and 100 are needed at 1 %" in capsys.readouterr().out
    assert "hardly an attack on the scans of A succeeded" in fit_table.not_compared({"fpr": 0.01, "n_a": 100})


def test_a_score_that_is_no_number_is_laid_to_its_detector(fitted: Fitted) -> None:
    detector = fitted.ensemble.members[0].detector

    with pytest.raises(InputError, match=f"detector {detector.name}: a clean score is not finite"):
        joining.tails([detector], {detector.name: torch.full((40,), torch.nan)})
