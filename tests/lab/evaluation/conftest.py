"""A report whose every figure is known, so that what is made of one is tested without an attack."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from lab.evaluation import choices
from lab.evaluation.curves import Thresholds, risk, roc
from lab.evaluation.report import Entry, Report, Worth
from lab.statistics import clopper_pearson

CLEAN, ATTACKED = 200, 40
WEIGHTS = {"twins": 0.5, "fusion": 0.25, "gradient_residual": 0.25, "median3": 0.0}
LEVELS = (1.0, 2.0, 4.0, 8.0)


def _loudness(name: str, level: float, attack: str) -> float:
    """How far, in standard deviations, an attack stands out to a detector."""
    base = {"ensemble": 4.0, "twins": 3.4, "fusion": 3.8, "gradient_residual": 4.5, "median3": 2.0}[name]
    hidden = {"adaptive": 2.4 + 0.5 * math.log2(level), "square": 1.0}.get(attack, 0.0)
    return base - hidden + 0.2 * math.log2(level)


def entry(name: str, eps: float | None, tier: str, seed: int) -> Entry:
    """One attack on the first `ATTACKED` scans, of which more succeed at larger budgets."""
    draws = torch.Generator().manual_seed(seed)
    level = eps or 2.0
    success = torch.arange(ATTACKED) < round(ATTACKED * min(1.0, 0.2 + 0.3 * math.log2(level + 1)))
    clean = torch.randn(CLEAN, generator=draws).double()
    thresholds = Thresholds.of(CLEAN)

    def suspicion(detector: str) -> torch.Tensor:
        aloud = torch.randn(ATTACKED, generator=draws).double()
        return aloud + _loudness(detector, level, name) * success

    def worth(values: torch.Tensor) -> Worth:
        flags = {
            rate: clopper_pearson(int((values[success] > torch.quantile(clean, 1 - rate)).sum()), int(success.sum()))
            for rate in (0.01, 0.05)
        }
        auroc = float((values[success][:, None] > clean).double().mean())
        return Worth(auroc, flags[0.01], flags[0.01], flags[0.05], roc(thresholds, clean, values[success]))

    whole = suspicion("ensemble")
    evaded = success & (whole <= torch.quantile(clean, 0.99))
    risks, coverage = risk(thresholds, clean, whole, success)
    done = int(evaded.sum())
    walked = tuple(
        tuple(min(done, round(done * (1 - math.exp(-(step + 30 * start) / 9)))) for step in range(31))
        for start in range(2)
    )
    return Entry(
        name=name, eps=eps, tier=tier, budget=choices.LEVELS if eps else "the nearest", configuration=name,
        n_attacked=ATTACKED,
        n_success=int(success.sum()), detectors={each: worth(suspicion(each)) for each in WEIGHTS},
        ensemble=worth(whole), evasion=clopper_pearson(done, ATTACKED),
        accuracy_of_admitted=clopper_pearson(ATTACKED - int(success.sum()), ATTACKED - int(success.sum()) + done)
        if ATTACKED - int(success.sum()) + done else None,
        denoised_accuracy={"median": 0.8, "dncnn": 0.85}, norm_linf_levels=level, ssim=1 - 0.01 * level,
        evaded=tuple(evaded.nonzero()[:, 0].tolist()), risk=risks, coverage=coverage,
        history=walked if tier == "adaptive" else (),
    )  # fmt: skip


@pytest.fixture(scope="session")
def drawn_report() -> Report:
    """Four attacks at four budgets, one without, and the informed attacker."""
    sized = [("fgsm", "oblivious"), ("pgd", "oblivious"), ("square", "black-box"), ("transfer", "transfer")]
    plans = [(name, eps, tier) for name, tier in (*sized, ("adaptive", "adaptive")) for eps in LEVELS]
    plans.append(("deepfool", None, "oblivious"))
    calm = {
        name: {each: clopper_pearson(1 + (name == "JPEG 90"), 100) for each in (*WEIGHTS, "ensemble")}
        for name in ("saved again", "JPEG 90", "blur 0.5", "sign noise 8")
    }
    return Report(
        grade="quick, 40 images", seeds=(0,), model="a" * 64, profile="b" * 64, detectors=WEIGHTS, dataset="c" * 64,
        n_clean=CLEAN, target_fpr=0.01,
        fpr_measured={each: clopper_pearson(2, CLEAN) for each in (*WEIGHTS, "ensemble")}, clean_accuracy=0.97,
        denoised_clean_accuracy={"median": 0.96, "dncnn": 0.965}, roc_fpr=Thresholds.of(CLEAN).rates, benign=calm,
        shifts={"adults.npz": {each: clopper_pearson(9, 100) for each in (*WEIGHTS, "ensemble")}},
        attacks=tuple(entry(name, eps, tier, seed) for seed, (name, eps, tier) in enumerate(plans)),
    )  # fmt: skip


@pytest.fixture(scope="session")
def drawn(drawn_report: Report) -> Mapping[str, Any]:
    """The same as report.json has it."""
    return drawn_report.document()


@pytest.fixture(scope="session")
def blind(drawn_report: Report) -> Mapping[str, Any]:
    """Without the informed attacker."""
    kept = tuple(each for each in drawn_report.attacks if each.tier != "adaptive")
    return replace(drawn_report, attacks=kept).document()
