"""What a fitted ensemble is worth on scans that nothing was fitted on."""

from typing import Any

import torch
from torch import Tensor

from detectors.ensemble import Ensemble
from detectors.models.outputs import Task, agreement
from detectors.mondrian import Category, Claims
from lab.categories import calibrated
from lab.data import Split
from lab.development import Model, descend
from lab.progress import Watch
from lab.seeds import seeds_of
from lab.statistics import clopper_pearson
from lab.workbench import BATCH, logits_of, staged

LEVELS = (1, 2, 4, 8)
"""Budgets at which a fit reports what its detectors are worth, in grey levels."""


def measure(
    ensemble: Ensemble,
    scans: Split,
    *,
    fpr: float,
    seed: int,
    levels: tuple[int, ...] = LEVELS,
    model: Model | None = None,
    watch: Watch = lambda _stage, _share: None,
) -> dict[str, Any]:
    """What an ensemble is worth on scans that nothing was fitted on, against a plain attack (PGD, 10 steps).

    Args:
        ensemble: what is measured.
        scans: clean, with labels.
        fpr: p-values up to it are flagged.
        seed: of the attacks' starts.
        levels: budgets, in grey levels.
        model: what the attacks ask; by default the protected model (`logits_of`).
        watch: told of progress.

    Returns:
        False-positive rate with its interval, and for each budget the attack's success and every detector's rate of
        detection among successes, at p <= fpr; empty without scans. Attacks start from scans that are classified
        rightly; for several labels and for segmentation from all scans, and success is a changed decision.
    """
    scans, claims = calibrated(scans, ensemble.mondrian)
    if not len(scans):
        return {}
    probe = ensemble.probe
    unit = probe.span.to_unit(scans.images)
    device = probe.device
    report: dict[str, Any] = {"n": len(scans), "accuracy": None, "fpr": {}, "pgd": {}}
    with staged(watch, "measuring", 1 + len(levels)) as done:
        flags, predictions = flagged(ensemble, unit, fpr, claims)
        right = agreement(scans.labels, predictions, probe.task)
        report["accuracy"] = float(right.mean())
        report["fpr"] = {name: clopper_pearson(int(flag.sum()), len(flag)) for name, flag in flags.items()}
        done()
        chosen = right == 1 if probe.task is Task.MULTICLASS else torch.ones(len(unit), dtype=torch.bool)
        begun, theirs = unit[chosen], _picked(claims, chosen)
        for level in levels:
            images, success = descend(
                model or logits_of(probe), begun, levels=level, steps=10, device=device, seed=seed, task=probe.task
            )  # fmt: skip
            entry: dict[str, Any] = {"attacked": len(begun), "successes": int(success.sum())}
            if entry["successes"]:
                flags, _ = flagged(ensemble, images[success], fpr, _picked(theirs, success))
                entry["tpr"] = {name: clopper_pearson(int(flag.sum()), len(flag)) for name, flag in flags.items()}
            report["pgd"][str(level)] = entry
            done()
    return report


def _picked(claims: list[tuple[Category, ...]] | None, chosen: Tensor) -> list[tuple[Category, ...]] | None:
    """The claims of the chosen images; `chosen` is (N,) bool."""
    return None if claims is None else [claim for claim, kept in zip(claims, chosen.tolist(), strict=True) if kept]


def flagged(
    ensemble: Ensemble, unit: Tensor, fpr: float, claims: Claims | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """By detector, and under `ensemble`, which images (N, C, H, W), 0 to 1, it flags; and the model's classes.

    `claims`: the categories that each image may be of; None where nobody vouches for any.
    """
    device = ensemble.probe.device
    found: dict[str, list[Tensor]] = {}
    predictions = []
    for start, part in zip(range(0, len(unit), BATCH), torch.split(unit, BATCH), strict=True):
        of_part = None if claims is None else claims[start : start + BATCH]
        images = ensemble.probe.span.from_unit(part)
        seen = ensemble.examine(images.to(device), seeds_of(images).to(device), of_part)
        for name, p in {**seen.p_values, "ensemble": seen.p_value}.items():
            found.setdefault(name, []).append((p <= fpr).cpu())
        predictions.append(seen.predictions.cpu())
    return {name: torch.cat(flags) for name, flags in found.items()}, torch.cat(predictions)
