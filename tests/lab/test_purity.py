"""Attacked scans among the clean ones that detectors are calibrated on are named, and clean ones are not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from detectors.calibration import ConformalCalibration
from gateway.profile import Profile
from lab import data, fit_table, fitting
from lab.attacks.attack import Target
from lab.attacks.pgd import PGD
from lab.purity import CHANCE, NOBODY, Doubts, doubts
from lab.seeds import seeds_of
from lab.workbench import logits_of

DETECTORS = ("twin", "fusion")


def drawn(count: int, seed: int, *, loud: int = 0, by: float = 25.0) -> dict[str, Tensor]:
    """Scores of clean scans with exponential tails; the first few are as loud to both detectors as attacks are."""
    draws = torch.Generator().manual_seed(seed)
    scores = torch.empty(len(DETECTORS), count).exponential_(generator=draws)
    scores[:, :loud] += by
    return dict(zip(DETECTORS, scores, strict=True))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.10])
def test_attacked_scans_among_the_clean_ones_are_named_whichever_part_they_are_in(share: float) -> None:
    in_a, in_b = round(260 * share), round(380 * share)

    both = doubts(drawn(260, 3, loud=in_a), drawn(380, 4, loud=in_b))

    assert doubts(drawn(260, 3), drawn(380, 4, loud=in_b)) == Doubts((), tuple(range(in_b)))
    assert doubts(drawn(260, 3, loud=in_a), drawn(380, 4)) == Doubts(tuple(range(in_a)), ())
    assert both == Doubts(tuple(range(in_a)), tuple(range(in_b)))  # each is judged by a body that it hardly moves


def test_clean_scans_are_seldom_doubted() -> None:
    doubted = sum(bool(doubts(drawn(260, 2 * k), drawn(380, 4 * k + 1))) for k in range(200))

    assert doubted <= 200 * 5 * CHANCE


def test_what_is_not_named_cannot_raise_a_threshold_beyond_the_bound() -> None:
    """The price of the smallest poison: quieter than the bound, and the threshold stays below it."""
    quiet = drawn(380, 4, loud=4, by=6.0)

    assert doubts(drawn(260, 3), quiet) == NOBODY
    before, after = (ConformalCalibration.fit(each["twin"], 0.01).threshold(0.01) for each in (drawn(380, 4), quiet))
    assert before < after < 12


def test_too_few_scans_say_nothing() -> None:
    assert doubts(drawn(19, 1), drawn(19, 2, loud=2)) == NOBODY


def test_attacks_on_a_real_model_are_named_among_its_calibration_scans(site: Path, fitted: fitting.Fitted) -> None:
    profile, probe = Profile.load(site / "profile.toml"), fitted.ensemble.probe
    parts = fitting.Parts.of(data.load(site / "data.npz", profile), seed=0)
    logits = logits_of(probe)
    target = Target.of_uint8(lambda rendered: logits(probe.span.to_unit(rendered)), profile)
    scans = data.stored(site / "data.npz", "val", profile)
    found = PGD(eps=8, steps=10)(target, scans.images[:12], scans.labels[:12])

    def scored(images: Tensor) -> dict[str, Tensor]:
        deciding = [member.detector for member in fitted.ensemble.members if member.channel]
        seen = probe.observe(images, fitted.ensemble.deciding_needs, seeds=seeds_of(images))
        with torch.no_grad():
            return {each.name: each.score(seen).values for each in deciding}

    a, clean, bad = (scored(each) for each in (parts.a.images, parts.b.images, target.view(found.images)))
    poisoned = {name: torch.cat([bad[name], clean[name][12:]]) for name in clean}

    assert doubts(a, clean) == NOBODY
    named = doubts(a, poisoned)
    assert set(named.b) <= set(range(12))
    assert len(named.b) >= 0.8 * int(found.success.sum()) > 0


def test_a_fit_writes_down_whom_it_doubts(fitted: fitting.Fitted) -> None:
    assert fitted.doubts == NOBODY
    assert json.loads(fitted.manifest)["suspicious"] == {"a": [], "b": []}


def test_doubted_scans_are_named_by_their_ids() -> None:
    said = fit_table.doubted(Doubts((1,), tuple(range(25))), ("x", "y"), tuple(f"b{k}" for k in range(30)))

    assert said.startswith("26 scans are louder than clean ones should be: train y, val b0, val b1,")
    assert "and 6 more" in said
    assert "before the artefact is used" in said
