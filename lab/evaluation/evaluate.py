"""Attacks a guarded model on scans that nothing was fitted on, and says what each detector and the ensemble saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from detectors.artifact import Artefact
from detectors.models.answers import Ask
from detectors.models.outputs import Task, agreement
from detectors.observation import Needs
from gateway.profile import Profile
from lab.attacks.attack import Attacked, Target
from lab.attacks.measures import change
from lab.data import DataError, StoredScans, load, stored
from lab.evaluation.attacks import Informed, Planned, informed, planned
from lab.evaluation.benign import BENIGN
from lab.evaluation.curves import Thresholds, risk, roc
from lab.evaluation.grades import Grade
from lab.evaluation.means import Means
from lab.evaluation.report import Entry, Report, Worth
from lab.progress import Watch
from lab.seeds import seeds_of
from lab.statistics import clopper_pearson
from lab.workbench import BATCH, logits_of, staged

STRICT, LOOSE = 0.01, 0.05
"""The deployed rules p <= alpha at which detection is counted."""
ENSEMBLE = "ensemble"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the artefact makes of images: by detector, and under `ensemble`, both (N,) float64."""

    suspicion: Mapping[str, Tensor]
    """Larger is more suspicious; orders images."""
    p_values: Mapping[str, Tensor]
    decisions: Tensor
    """The protected model's."""

    def flagged(self, name: str, alpha: float) -> Tensor:
        """(N,) bool by the deployed rule."""
        return self.p_values[name] <= alpha


def evaluate(
    model: bytes,
    profile: Profile,
    directory: Path,
    manifest: bytes,
    data: Path,
    *,
    attacks: Sequence[str],
    levels: Sequence[float],
    grade: Grade,
    adaptive: bool = False,
    forms: Sequence[Informed] = ("single",),
    shifts: Sequence[Path] = (),
    seed: int = 0,
    device: torch.device | None = None,
    ask: Ask | None = None,
    watch: Watch = lambda _stage, _share: None,
    keep: Callable[[Report], None] = lambda _report: None,
) -> Report:
    """Measure an artefact on the test split of a data set.

    (1) clean scans: false positives, accuracy, and accuracy after each denoiser
    (2) changes that must not alarm, and scans of another source
    (3) each attack at each budget, on scans that the model reads rightly

    Args:
        model: the ONNX file that is served.
        profile: its profile.
        directory: of the artefact.
        manifest: its manifest, which is believed: its signature is the caller's to check.
        data: an .npz file; its `test` split is attacked, its `train` split teaches the attacker's surrogate.
        attacks: names.
        levels: budgets in 8-bit grey levels.
        grade: how many images, steps and starts.
        adaptive: whether the attacker who holds the detectors has his turn too.
        forms: of that attacker.
        shifts: other data sets, whose test scans are shown as they are.
        seed: of everything that is drawn.
        device: where to run; by default the CPU.
        ask: the way to a model that only a server has.
        watch: told of progress.
        keep: given the report as far as it goes, after each attack: hours of work outlive what ends them.

    Raises:
        DataError: no test scans, stored values that an attack cannot be written into, or no such attack.
    """
    place = device or torch.device("cpu")
    bench = _Bench(Artefact.load(directory, manifest, model, profile.sha256, place, ask=ask), profile, place)
    scans = stored(data, "test", profile)
    plans = planned(attacks, levels, grade, seed, bench.means(data, seed, watch))
    clean = bench.look(scans.images)  # (1)
    report = bench.clean(scans, clean, grade, seed, load(data, profile).sha256)
    chosen = bench.chosen(scans, clean, grade, seed)
    begun = StoredScans(scans.images[chosen], scans.labels[chosen])
    report = replace(report, benign=bench.benign(begun, levels, seed))  # (2)
    report = replace(report, shifts={path.name: bench.shift(path) for path in shifts})
    if adaptive:
        plans += [each for how in forms for each in informed(bench.ensemble, bench.fpr, levels, grade, seed, how)]
    with staged(watch, "attacking", max(len(plans), 1)) as done:  # (3)
        for left, plan in zip(range(len(plans) - 1, -1, -1), plans, strict=True):
            report = replace(report, attacks=(*report.attacks, bench.attacked(plan, begun, chosen, clean)), left=left)
            keep(report)
            done()
    return report


class _Bench:
    """An artefact, the target in front of it, and what is asked of both."""

    def __init__(self, artefact: Artefact, profile: Profile, device: torch.device) -> None:
        self.artefact, self.ensemble, self.profile, self.device = artefact, artefact.ensemble, profile, device
        self.task = self.ensemble.probe.task
        self.fpr = float(artefact.manifest["fpr"])
        logits, span = logits_of(self.ensemble.probe), self.ensemble.probe.span
        self.target = Target.of_uint8(lambda rendered: logits(span.to_unit(rendered)), profile)

    def means(self, data: Path, seed: int, watch: Watch) -> Means:
        """What attackers may bring: they have the training split."""
        return Means.of(self.ensemble.probe, self.target, self.profile, data, seed, self.device, watch)

    def look(self, images: Tensor) -> Seen:
        """Examine stored values (N, C, rows, columns)."""
        suspicion: dict[str, list[Tensor]] = {}
        p_values: dict[str, list[Tensor]] = {}
        decisions = []
        for part in torch.split(images, BATCH):
            rendered = self.target.view(part.to(self.device))
            found = self.ensemble.examine(rendered, seeds_of(rendered).to(self.device))
            for name, values in {**found.scores, ENSEMBLE: found.statistic}.items():
                suspicion.setdefault(name, []).append(values.double().cpu())
            for name, values in {**found.p_values, ENSEMBLE: found.p_value}.items():
                p_values.setdefault(name, []).append(values.cpu())
            decisions.append(found.predictions.cpu())
        return Seen(
            {name: torch.cat(parts) for name, parts in suspicion.items()},
            {name: torch.cat(parts) for name, parts in p_values.items()},
            torch.cat(decisions),
        )

    def clean(self, scans: StoredScans, seen: Seen, grade: Grade, seed: int, dataset: str) -> Report:
        """The report of clean scans alone."""
        facts = self.artefact.manifest
        return Report(
            grade=grade.name,
            seeds=(seed,),
            model=facts["model_sha256"],
            profile=self.profile.sha256,
            detectors={name: entry["weight"] for name, entry in facts["detectors"].items()},
            dataset=dataset,
            n_clean=len(scans.images),
            target_fpr=self.fpr,
            fpr_measured={name: _rate(seen.flagged(name, self.fpr)) for name in seen.p_values},
            clean_accuracy=float(agreement(scans.labels, seen.decisions, self.task).mean()),
            denoised_clean_accuracy={
                name: self._denoised(denoise, scans.images, scans.labels)
                for name, denoise in self.artefact.denoisers.items()
            },
            roc_fpr=Thresholds.of(len(scans.images)).rates,
        )

    def chosen(self, scans: StoredScans, seen: Seen, grade: Grade, seed: int) -> Tensor:
        """Places of scans to attack: of those read rightly, as many as the grade asks for, drawn by the seed."""
        right = agreement(scans.labels, seen.decisions, self.task)
        kept = (right == 1 if self.task is Task.MULTICLASS else right >= 0.5).nonzero()[:, 0]
        if not len(kept):
            raise DataError("the model reads no test scan rightly: there is nothing to attack")
        order = torch.randperm(len(kept), generator=torch.Generator().manual_seed(seed))
        return kept[order[: grade.images]].sort().values

    def benign(self, begun: StoredScans, levels: Sequence[float], seed: int) -> dict[str, dict[str, dict[str, float]]]:
        """By change and detector, how often a change is flagged that must not be."""
        told = {}
        for name, change_of in BENIGN.items():
            for level in levels if change_of.sized else (math.nan,):
                changed = change_of(begun.images, level, seed).round().clamp(self.target.low, self.target.high)
                seen = self.look(changed)
                key = f"{name} {level:g}" if change_of.sized else name
                told[key] = {each: _rate(seen.flagged(each, self.fpr)) for each in seen.p_values}
        return told

    def shift(self, path: Path) -> dict[str, dict[str, float]]:
        """By detector, how often scans of another source are flagged."""
        seen = self.look(stored(path, "test", self.profile, labelled=False).images)
        return {name: _rate(seen.flagged(name, self.fpr)) for name in seen.p_values}

    def attacked(self, plan: Planned, begun: StoredScans, places: Tensor, clean: Seen) -> Entry:
        """One attack at one budget on the scans at these places; success is a wrong answer, whatever it aimed at."""
        found: Attacked = plan.attack(self.target, begun.images.to(self.device), begun.labels.to(self.device))
        images = found.images.cpu()
        success = self.target.judged(found.images, begun.labels.to(self.device), batch=BATCH).success.cpu()
        seen = self.look(images)
        flags = seen.flagged(ENSEMBLE, self.fpr)
        evaded = success & ~flags
        admitted = ~flags
        moved = change(self.target, begun.images, images)
        shown = success if bool(success.any()) else torch.ones_like(success)
        thresholds = Thresholds.of(len(clean.decisions))
        risks, coverage = risk(thresholds, clean.suspicion[ENSEMBLE], seen.suspicion[ENSEMBLE], success)
        return Entry(
            name=plan.name,
            eps=plan.eps,
            tier=plan.tier,
            budget=plan.budget,
            configuration=repr(plan.attack),
            n_attacked=len(images),
            n_success=int(success.sum()),
            detectors={
                name: _worth(name, seen, clean, success, self.fpr) for name in clean.suspicion if name != ENSEMBLE
            },
            ensemble=_worth(ENSEMBLE, seen, clean, success, self.fpr),
            evasion=_rate(evaded),
            accuracy_of_admitted=_rate(~success[admitted]) if bool(admitted.any()) else None,
            denoised_accuracy={
                name: self._denoised(denoise, images, begun.labels) for name, denoise in self.artefact.denoisers.items()
            },
            norm_linf_levels=float(moved.linf[shown].mean()),
            ssim=float(moved.ssim[shown].mean()),
            evaded=tuple(places[evaded].tolist()),
            risk=risks,
            coverage=coverage,
            history=tuple(tuple(curve.tolist()) for curve in found.history),
        )

    @torch.no_grad()
    def _denoised(self, denoise: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor) -> float:
        """How far the model's decisions on denoised images agree with the labels."""
        answers = [
            self.ensemble.probe.observe(denoise(self.target.view(part.to(self.device))), Needs()).decision.cpu()
            for part in torch.split(images, BATCH)
        ]
        return float(agreement(labels, torch.cat(answers), self.task).mean())


def _worth(name: str, seen: Seen, clean: Seen, success: Tensor, fpr: float) -> Worth | None:
    """What one detector is worth against the attacks that succeeded; None where none did."""
    if not bool(success.any()):
        return None
    return Worth(
        auroc=_auroc(clean.suspicion[name], seen.suspicion[name][success]),
        tpr_at_target=_rate(seen.flagged(name, fpr)[success]),
        tpr_at_fpr1=_rate(seen.flagged(name, STRICT)[success]),
        tpr_at_fpr5=_rate(seen.flagged(name, LOOSE)[success]),
        roc=roc(Thresholds.of(len(clean.decisions)), clean.suspicion[name], seen.suspicion[name][success]),
    )


def _auroc(clean: Tensor, attacked: Tensor) -> float:
    """Chance that an attacked scan looks more suspicious than a clean one; a tie counts half."""
    ordered = clean.sort().values
    below = torch.searchsorted(ordered, attacked, side="left")
    up_to = torch.searchsorted(ordered, attacked, side="right")
    return float(((below + up_to).double() / 2 / len(clean)).mean())


def _rate(flags: Tensor) -> dict[str, float]:
    return clopper_pearson(int(flags.sum()), len(flags))
