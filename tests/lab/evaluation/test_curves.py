"""Curves over thresholds: what a threshold that rejects so many clean scans would do."""

from __future__ import annotations

import torch

from lab.evaluation.curves import Thresholds, risk, roc


def test_each_threshold_rejects_at_most_its_share_of_clean_scans() -> None:
    draws = torch.Generator().manual_seed(0)
    clean = torch.randint(40, (130,), generator=draws).double()  # many ties

    thresholds = Thresholds.of(130)

    assert thresholds.counts[0] == 0
    assert thresholds.counts[-1] == 130
    assert list(thresholds.counts) == sorted(set(thresholds.counts))
    rejected = (~thresholds.admitted(clean, clean)).sum(1)
    assert bool((rejected <= torch.tensor(thresholds.counts)).all())


def test_a_curve_rises_from_what_no_clean_scan_reaches_to_all() -> None:
    clean, attacked = torch.arange(10).double(), torch.tensor([8.5, 9.0, 9.5, -1.0]).double()

    found = roc(Thresholds.of(10), clean, attacked)

    assert found[0] == 0.25  # beyond every clean scan
    assert found[1] == 0.75  # one clean scan rejected: 9 itself too
    assert found[-1] == 1.0
    assert list(found) == sorted(found)


def test_risk_counts_what_is_misread_and_admitted() -> None:
    clean, attacked = torch.arange(10).double(), torch.tensor([8.5, 9.5, 2.5, 20.0]).double()

    risks, coverage = risk(Thresholds.of(10), clean, attacked, torch.tensor([True, True, False, True]))

    assert (risks[0], coverage[0]) == (0.25, 0.5)  # of four, two are admitted, and one of them is misread
    assert (risks[-1], coverage[-1]) == (0.0, 0.0)
