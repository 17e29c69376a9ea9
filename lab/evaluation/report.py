"""The report of an evaluation: report.json (architecture 5.4), and the same as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lab.evaluation.conclusions import convergence, worst_cases

Rate = Mapping[str, float]
"""`rate`, `low`, `high` (95 % Clopper-Pearson) and `n`."""
ENSEMBLE = "ensemble"


@dataclass(frozen=True, slots=True)
class Worth:
    """What a detector is worth against one attack, counted over the attacks that succeeded."""

    auroc: float
    """Against the clean test scans."""
    tpr_at_target: Rate
    """At the rule that the artefact was fitted for."""
    tpr_at_fpr1: Rate
    """At the rule p <= 0.01; nothing is flagged where too few clean scans were calibrated on for it."""
    tpr_at_fpr5: Rate
    """At p <= 0.05."""
    roc: tuple[float, ...]
    """The share that is flagged where a threshold on the test scans flags so many clean ones (`Report.roc_fpr`)."""

    def document(self) -> dict[str, Any]:
        """As report.json has it."""
        return {
            "at_target": dict(self.tpr_at_target),
            "auroc": self.auroc,
            "tpr_at_target": self.tpr_at_target["rate"],
            "tpr_at_fpr1": self.tpr_at_fpr1["rate"],
            "tpr_at_fpr5": self.tpr_at_fpr5["rate"],
            "roc": list(self.roc),
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """One attack at one budget."""

    name: str
    eps: float | None
    tier: str
    budget: str
    """What bounds the attack, in words."""
    configuration: str
    """The attack's repr."""
    n_attacked: int
    """Scans that the model reads rightly."""
    n_success: int
    """Of these, misread after the attack."""
    detectors: Mapping[str, Worth | None]
    ensemble: Worth | None
    evasion: Rate
    """Misread and not flagged at the target rate, over all attacked."""
    accuracy_of_admitted: Rate | None
    """Read rightly, over those not flagged; None where all were."""
    denoised_accuracy: Mapping[str, float]
    norm_linf_levels: float
    """Mean over the successes of the largest change, 8-bit grey levels."""
    ssim: float
    evaded: tuple[int, ...]
    """Places in the test split of the scans that were misread and not flagged at the target rate."""
    risk: tuple[float, ...]
    """Misread and admitted, over all attacked, at the thresholds of `Report.roc_fpr` on the ensemble."""
    coverage: tuple[float, ...]
    """Admitted, over all attacked, at the same thresholds."""
    history: tuple[tuple[int, ...], ...] = ()
    """For each start, how many scans had fallen after so many steps, as the attack counts; empty where it does not."""

    def document(self) -> dict[str, Any]:
        """As report.json has it.

        `adversarial_risk` is the chance that an attacked scan is admitted and misread, which on scans that were read
        rightly is `evasion`; its interval stands beside it.
        """
        return {
            "name": self.name,
            "eps": self.eps,
            "tier": self.tier,
            "budget": self.budget,
            "configuration": self.configuration,
            "n_attacked": self.n_attacked,
            "n_success": self.n_success,
            "success_rate_undefended": self.n_success / self.n_attacked,
            "detectors": {name: worth.document() if worth else None for name, worth in self.detectors.items()},
            "ensemble": self.ensemble.document() if self.ensemble else None,
            "evasion": self.evasion["rate"],
            "adversarial_risk": dict(self.evasion),
            "accuracy_of_admitted": self.accuracy_of_admitted["rate"] if self.accuracy_of_admitted else None,
            "denoised_accuracy": dict(self.denoised_accuracy),
            "norm_linf_levels": self.norm_linf_levels,
            "ssim": self.ssim,
            "evaded": list(self.evaded),
            "risk_coverage": {"risk": list(self.risk), "coverage": list(self.coverage)},
            "convergence": convergence(self.history, self.n_attacked),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that an evaluation found."""

    grade: str
    seeds: tuple[int, ...]
    model: str
    profile: str
    detectors: Mapping[str, float]
    """By name, the share of the false-positive budget; 0 where it is only reported."""
    dataset: str
    n_clean: int
    target_fpr: float
    fpr_measured: Mapping[str, Rate]
    clean_accuracy: float
    denoised_clean_accuracy: Mapping[str, float]
    roc_fpr: tuple[float, ...] = ()
    """Shares of the clean test scans that the thresholds of the curves reject."""
    benign: Mapping[str, Mapping[str, Rate]] = field(default_factory=dict)
    """By change and detector, flagged at the target rate."""
    shifts: Mapping[str, Mapping[str, Rate]] = field(default_factory=dict)
    """By data set and detector, flagged at the target rate."""
    attacks: tuple[Entry, ...] = ()
    left: int = 0
    """Attacks that are still to come: above 0 in a report that was cut short."""

    def document(self) -> dict[str, Any]:
        """report.json."""
        loudest = max((rates[ENSEMBLE]["rate"] for rates in self.benign.values()), default=None)
        attacks = [entry.document() for entry in self.attacks]
        return {
            "schema": 1,
            "grade": self.grade,
            "threat_model": THREAT_MODEL,
            "seeds": list(self.seeds),
            "model": self.model,
            "profile": self.profile,
            "detectors": dict(self.detectors),
            "dataset": self.dataset,
            "n_clean": self.n_clean,
            "target_fpr": self.target_fpr,
            "fpr_measured": dict(self.fpr_measured[ENSEMBLE]),
            "clean_accuracy": self.clean_accuracy,
            "denoised_clean_accuracy": dict(self.denoised_clean_accuracy),
            "attacks": attacks,
            "attacks_left": self.left,
            "roc_fpr": list(self.roc_fpr),
            "worst_case": worst_cases(attacks),
            "null_attack": {
                "flag_rate": loudest,
                "by_change": {name: dict(rates[ENSEMBLE]) for name, rates in self.benign.items()},
                "by_detector": _by_detector(self.benign),
            },
            "fpr_by_detector": _by_detector({"clean": self.fpr_measured}),
            "shift": {name: dict(rates[ENSEMBLE]) for name, rates in self.shifts.items()},
        }

    def markdown(self, title: str) -> str:
        """The same as tables."""
        names = [*self.detectors, ENSEMBLE]
        return "\n\n".join(
            [
                f"## {title}",
                f"Grade `{self.grade}`, seeds {', '.join(map(str, self.seeds))}; {self.n_clean} clean test scans, read "
                f"rightly {self.clean_accuracy:.1%}"
                + "".join(f", after {name} {rate:.1%}" for name, rate in self.denoised_clean_accuracy.items())
                + f". {THREAT_MODEL}",
                self._calm(names),
                self._alarms(names),
                self._left(),
            ]
        )

    def _calm(self, names: list[str]) -> str:
        """What is flagged that should not be."""
        columns: dict[str, Mapping[str, Rate]] = {"clean": self.fpr_measured, **self.benign, **self.shifts}
        rows = [[name, *(f"{rates[name]['rate']:.1%}" for rates in columns.values())] for name in names]
        sizes = ["scans", *(str(rates[ENSEMBLE]["n"]) for rates in columns.values())]
        interval = self.fpr_measured[ENSEMBLE]
        told = (
            f"Flagged at p <= {self.target_fpr:g} though harmless; the ensemble on clean scans [{interval['low']:.1%}, "
        )
        return told + f"{interval['high']:.1%}].\n\n" + _table(["", *columns], [sizes, *rows])

    def _alarms(self, names: list[str]) -> str:
        """Detection among successful attacks."""
        rows = []
        for entry in self.attacks:
            cells = [_called(entry), entry.tier, f"{entry.n_success}/{entry.n_attacked}"]
            for name in names:
                worth = entry.ensemble if name == ENSEMBLE else entry.detectors[name]
                cells.append(_worth(worth))
            rows.append(cells)
        return (
            f"Of the attacks that succeed, per cent flagged at p <= {self.target_fpr:g} / at p <= 0.05 / AUROC.\n\n"
            + _table(["attack, grey levels", "tier", "successes", *names], rows)
        )

    def _left(self) -> str:
        """What an attack leaves."""
        denoisers = list(self.denoised_clean_accuracy)
        rows = [
            [
                _called(entry),
                f"{entry.evasion['rate']:.1%} [{entry.evasion['low']:.1%}, {entry.evasion['high']:.1%}]",
                f"{entry.accuracy_of_admitted['rate']:.1%}" if entry.accuracy_of_admitted else "none admitted",
                *(f"{entry.denoised_accuracy[name]:.1%}" for name in denoisers),
                f"{entry.norm_linf_levels:.1f}",
                f"{entry.ssim:.3f}",
            ]
            for entry in self.attacks
        ]
        head = [
            "attack",
            "misread and admitted",
            "admitted read rightly",
            *(f"after {name}" for name in denoisers),
        ]
        return "What is left of it.\n\n" + _table([*head, "L-inf", "SSIM"], rows)


THREAT_MODEL = (
    "The attacker may change every stored value by at most the budget, and what counts is the file that he can store. "
    "Oblivious: he knows the model and its profile, not the detectors. Transfer: he has a model of his own. Adaptive: "
    "he holds everything but the signing keys."
)


def _by_detector(told: Mapping[str, Mapping[str, Rate]]) -> dict[str, dict[str, float]]:
    """By change and detector, the rate alone."""
    return {what: {name: rate["rate"] for name, rate in rates.items()} for what, rates in told.items()}


def _called(entry: Entry) -> str:
    return entry.name if entry.eps is None else f"{entry.name} {entry.eps:g}"


def _worth(worth: Worth | None) -> str:
    if worth is None:
        return "-"
    return f"{100 * worth.tpr_at_target['rate']:.0f} / {100 * worth.tpr_at_fpr5['rate']:.0f} / {worth.auroc:.2f}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
