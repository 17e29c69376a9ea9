"""Measures what the bundled detectors catch on drawn slices, and writes docs/results-phantom.md: `make results`."""

import os
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from detectors.artifact import Artefact
from detectors.ensemble import Ensemble
from detectors.observation import Needs
from gateway.profile import Profile
from gateway.protected import MANIFEST_ENVELOPE, MANIFEST_TYPE
from lab import phantoms
from lab.attacks.attack import Target
from lab.attacks.fgsm import FGSM
from lab.attacks.pgd import PGD
from lab.measuring import flagged
from lab.phantom_detectors import FPR, PUBLIC_KEY, split_of
from lab.statistics import clopper_pearson
from lab.workbench import logits_of
from signing.envelope import load_public_key, open_envelope

LEVELS = (1.0, 2.0, 4.0, 8.0)
"""Budgets, in 8-bit grey levels of the window."""
REPORT = Path("docs/results-phantom.md")

console = Console(stderr=True)


@click.command()
@click.option("--assets", type=click.Path(exists=True, path_type=Path), default=phantoms.ASSETS, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=REPORT, show_default=True)
@click.option("--clean", "n_clean", default=1200, show_default=True, help="clean slices, for the false-positive rate")
@click.option("--attacked", "n_attacked", default=200, show_default=True, help="correctly read slices to attack")
@click.option("--steps", default=20, show_default=True, help="of projected gradient descent")
@click.option("--workers", default=0, show_default=True, help="processes that draw; 0: one a core")
@click.option("--threads", default=0, show_default=True, help="threads that measure; 0: as torch chooses")
def main(*, assets: Path, out: Path, n_clean: int, n_attacked: int, steps: int, workers: int, threads: int) -> None:
    """Measure the bundled artefact on slices that nothing was fitted on, and write the report."""
    if threads:
        torch.set_num_threads(threads)
    bench = Bench.open(assets)
    clean, right = bench.clean(n_clean, workers)  # (1) clean slices
    stored = np.stack([phantoms.draw(int(seed)).pixels for seed in right[:n_attacked]])
    slices = Slices(
        torch.from_numpy(stored.astype(np.float32))[:, None], torch.from_numpy(phantoms.labels(right[:n_attacked]))
    )
    attacks = [bench.attack(slices, kind, level, steps) for kind in ("pgd", "fgsm") for level in LEVELS]  # (2) attacks
    nulls = [bench.null(slices, block, level) for block in (1, 4) for level in LEVELS]  # (3) noise of the same size
    command = f"python -m lab.results --clean {n_clean} --attacked {n_attacked} --steps {steps}"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_report(bench, clean, attacks, nulls, command))  # (4) tell


@dataclass(frozen=True, slots=True)
class Slices:
    """Slices that the model reads correctly."""

    stored: Tensor
    """(N, 1, rows, columns) stored values."""
    labels: Tensor
    """(N,) int64."""


@dataclass(frozen=True, slots=True)
class Row:
    """One condition and what was flagged under it."""

    name: str
    level: float
    attacked: int
    successes: int
    flags: Mapping[str, Mapping[str, Any]]
    """By detector, the rate flagged at the deployed rule, with its interval; among successes for an attack."""
    restored: Mapping[str, Mapping[str, Any]]
    """By denoiser, the rate of correct answers after it; empty for noise."""


@dataclass(frozen=True, slots=True)
class Bench:
    """The artefact as a gateway would load it: signature, digests and all."""

    ensemble: Ensemble
    artefact: Artefact
    profile: Profile
    target: Target

    @classmethod
    def open(cls, assets: Path) -> "Bench":
        """Verify and load the bundled artefact."""
        profile = Profile.load(assets / "profile.toml")
        keys = [load_public_key(assets / PUBLIC_KEY)]
        manifest = open_envelope((assets / "detectors" / MANIFEST_ENVELOPE).read_bytes(), keys, MANIFEST_TYPE)
        model = (assets / "model.onnx").read_bytes()
        artefact = Artefact.load(assets / "detectors", manifest, model, profile.sha256, torch.device("cpu"))
        logits, span = logits_of(artefact.ensemble.probe), artefact.ensemble.probe.span
        target = Target.of_dicom(lambda rendered: logits(span.to_unit(rendered)), phantoms.RENDERING, profile)
        return cls(artefact.ensemble, artefact, profile, target)

    def clean(self, count: int, workers: int) -> tuple[Row, list[int]]:
        """Flags on fresh clean slices, and the seeds of those that the model reads correctly."""
        seeds = phantoms.seeds("test", count)
        scans = split_of(seeds, self.profile, workers)
        flags, predictions = self._flags(scans.images)
        right = predictions == scans.labels
        restored = {
            name: self._accuracy(denoise, scans.images, scans.labels)
            for name, denoise in self.artefact.denoisers.items()
        }
        row = Row("clean", 0.0, count, int(right.sum()), _rates(flags), restored)
        return row, [seed for seed, good in zip(seeds, right.tolist(), strict=True) if good]

    def attack(self, slices: Slices, kind: str, level: float, steps: int) -> Row:
        """Attack the stored values through the rendering, round, and see what is flagged among successes."""
        with console.status(f"{kind} at {level:g} grey levels"):
            how = PGD(eps=level, steps=steps) if kind == "pgd" else FGSM(eps=level)
            found = how(self.target, slices.stored, slices.labels)
            images, labels = found.images[found.success], slices.labels[found.success]
        name = "PGD" if kind == "pgd" else "FGSM"
        if not len(images):
            return Row(name, level, len(slices.labels), 0, {}, {})
        rendered = self._rendered(images)
        flags, _ = self._flags(rendered)
        restored = {
            name: self._accuracy(denoise, rendered, labels) for name, denoise in self.artefact.denoisers.items()
        }
        return Row(name, level, len(slices.labels), len(images), _rates(flags), restored)

    def null(self, slices: Slices, block: int, level: float) -> Row:
        """Random signs of the same size on the stored values: nothing that an attacker would gain from."""
        draws = torch.Generator().manual_seed(round(level) * 10 + block)
        rows, columns = slices.stored.shape[2:]
        signs = torch.randn(len(slices.stored), 1, rows // block, columns // block, generator=draws).sign()
        signs = signs.repeat_interleave(block, 2).repeat_interleave(block, 3)
        noisy = (slices.stored + self.target.budget(level) * signs).clamp(self.target.low, self.target.high)
        rendered = self._rendered(noisy)
        flags, predictions = self._flags(rendered)
        changed = int((predictions != slices.labels).sum())
        name = "sign noise" if block == 1 else f"sign noise, {block} x {block} pixels"
        return Row(name, level, len(slices.labels), changed, _rates(flags), {})

    def _rendered(self, stored: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.target.view(part) for part in torch.split(stored, 16)])

    def _flags(self, rendered: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        return flagged(self.ensemble, self.ensemble.probe.span.to_unit(rendered), FPR)

    def _accuracy(self, denoise: Callable[[Tensor], Tensor], rendered: Tensor, labels: Tensor) -> dict[str, Any]:
        """The model's accuracy on denoised images."""
        probe = self.ensemble.probe
        with torch.no_grad():
            answers = [probe.observe(denoise(part), Needs()).decision for part in torch.split(rendered, 64)]
        return clopper_pearson(int((torch.cat(answers) == labels).sum()), len(labels))


def _rates(flags: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    return {name: clopper_pearson(int(flag.sum()), len(flag)) for name, flag in flags.items()}


def _report(bench: Bench, clean: Row, attacks: list[Row], nulls: list[Row], command: str) -> str:
    """The document; every figure comes from a row."""
    facts = bench.artefact.manifest
    names = [*facts["detectors"], "ensemble"]
    weights = {name: entry["weight"] for name, entry in facts["detectors"].items()}
    accuracy = clopper_pearson(clean.successes, clean.attacked)
    lines = [
        "# What the bundled detectors catch on drawn CT slices",
        "",
        f"Written by `{command}` (`make results`); do not edit. Python {platform.python_version()},",
        f"torch {torch.__version__}, {os.cpu_count()} cores, CPU. Artefact of {facts['created']}, for the model with",
        f"SHA-256 {facts['model_sha256'][:16]}…; its rebuilt form differs from onnxruntime by at most "
        f"{facts['conversion_max_abs_diff']:.2g}.",
        "",
        "Phantoms are drawn, not acquired: these figures show that the machinery works and keeps its promise, not",
        "how well it would do on patients. The attacker here knows the model and not the detectors; one who knows both",
        "does better ([limits](limits.md)).",
        "",
        f"Fitted on {facts['n_fit']} slices, ordered on {facts['n_a']} (A), calibrated on {facts['n_b']} (B), measured",
        f"on others. Flagged means p <= {facts['fpr']:g}; guarantee: {facts['guarantee']}. Intervals are 95 %",
        "Clopper-Pearson.",
        "",
        f"## Clean slices ({clean.attacked})",
        "",
        f"Accuracy of the model {_rate(accuracy)}; after "
        + "; after ".join(f"{name} {_rate(found)}" for name, found in clean.restored.items())
        + ".",
        "",
        *_table(
            ["detector", "weight", "flagged"],
            [[name, f"{weights[name]:.2f}" if name in weights else "", _rate(clean.flags[name])] for name in names],
        ),
        "",
        "## Attacks: share of successful ones that is flagged",
        "",
        "Applied to the 512 x 512 stored values through the gateway's rendering, rounded to storable values, and only",
        "then judged.",
        "",
        *_flag_table(names, attacks, "successful"),
        "",
        "## The model's accuracy on successful attacks after denoising",
        "",
        *_table(
            ["attack", *clean.restored],
            [
                [f"{row.name} {row.level:g}", *(_rate(row.restored.get(name)) for name in clean.restored)]
                for row in attacks
            ],
        ),
        "",
        "## Null attack: random signs of the same size, share flagged",
        "",
        "In single stored pixels, most of which the reduction to the model's size averages away, and in blocks that",
        "survive it.",
        "",
        *_flag_table(names, nulls, "answer changed"),
    ]
    return "\n".join(lines) + "\n"


def _flag_table(names: list[str], rows: list[Row], what: str) -> list[str]:
    """One column a condition, one row a detector."""
    head = ["detector", *(f"{row.name} {row.level:g}" for row in rows)]
    counts = [what, *(f"{row.successes}/{row.attacked}" for row in rows)]
    body = [[name, *(_rate(row.flags.get(name)) for row in rows)] for name in names]
    return _table(head, [counts, *body])


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    return [_line(head), _line(["---"] * len(head)), *(_line(row) for row in rows)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rate(found: Mapping[str, Any] | None) -> str:
    """A rate with its interval, in per cent."""
    if not found:
        return "-"
    return f"{100 * found['rate']:.1f} % [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


if __name__ == "__main__":
    main()
