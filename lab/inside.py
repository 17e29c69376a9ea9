"""Measures what attacks do inside a model, layer by layer: `python -m lab.inside`.

After Xu et al. 2021, arXiv:2103.03438 (how attacks move features, what becomes of their discriminability and of the
correlation between labels). Noise as large as the attack stands beside it, so that what is shown is its aim.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
import torch
from torch import Tensor

from detectors.artifact import Artefact
from detectors.models.outputs import Task
from detectors.observation import Needs, Observation, Signal
from detectors.probe import Probe
from gateway.durable import replace
from gateway.profile import Profile
from lab import sealing
from lab.attacks.attack import Target
from lab.attacks.pgd import PGD
from lab.data import DataError, StoredScans, stored
from lab.workbench import BATCH, logits_of

LEVELS = (1.0, 2.0, 4.0, 8.0)
KINDS = ("attack", "noise")
REPORT = Path("docs/results-inside.md")
_FLOOR = 1e-12


@click.command()
@click.option("--model", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--profile", "profile_path", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--detectors", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--data", "data_path", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--images", default=200, show_default=True, help="test scans at most")
@click.option("--steps", default=20, show_default=True, help="of projected gradient descent")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path(".cache/inside"))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=REPORT, show_default=True)
def main(
    *, model: Path, profile_path: Path, detectors: Path, data_path: Path, images: int, steps: int, work: Path, out: Path
) -> None:
    """Attack test scans and look inside; budgets that were measured before are taken from the work folder."""
    profile = Profile.load(profile_path)
    if profile.task == "segmentation":
        raise DataError("the classes of a segmentation lie side by side in one image: there is no class to tell apart")
    manifest = sealing.unchecked(detectors)
    artefact = Artefact.load(detectors, manifest, model.read_bytes(), profile.sha256, torch.device("cpu"))
    whole = stored(data_path, "test", profile)
    scans = StoredScans(whole.images[:images], whole.labels[:images])
    folder = work / f"{artefact.manifest['model_sha256'][:16]}-{data_path.stem}-{len(scans.images)}-{steps}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = {}
    for level in LEVELS:
        kept = folder / f"{level:g}.json"
        if not kept.exists():
            replace(kept, json.dumps(measure(artefact.ensemble.probe, profile, scans, level, steps)).encode())
        rows[level] = json.loads(kept.read_bytes())
    picture = out.with_suffix(".png")
    _draw(rows, picture)
    command = f"python -m lab.inside --data {data_path.name} --images {len(scans.images)} --steps {steps}"
    out.write_text(document(rows, len(scans.images), command, picture.name), encoding="utf-8")


def measure(probe: Probe, profile: Profile, scans: StoredScans, level: float, steps: int) -> dict[str, Any]:
    """One budget.

    Args:
        probe: of the model.
        profile: its own.
        scans: 8-bit stored values and their labels.
        level: budget in grey levels, of the attack and of noise of random signs.
        steps: of projected gradient descent.

    Returns:
        `success`; by layer `moved`, how far features go, as a share of the clean scans' spread, under attack and noise;
        `own`, the share of scans nearest to the clean mean of their true class, of clean scans, under attack and
        noise; `labels`, the mean absolute change of the correlations between labels' scores, None where
        there are fewer than three labels.
    """
    logits = logits_of(probe)
    target = Target.of_uint8(lambda rendered: logits(probe.span.to_unit(rendered)), profile)
    found = PGD(eps=level, steps=steps)(target, scans.images, scans.labels)
    signs = torch.randn(scans.images.shape, generator=torch.Generator().manual_seed(0)).sign()
    noisy = (scans.images + level * signs).round().clamp(target.low, target.high)
    clean, attacked, noise = (_seen(probe, target, each) for each in (scans.images, found.images, noisy))
    groups = scans.labels if probe.task is Task.MULTICLASS else scans.labels.int().argmax(1)
    layers = list(clean.features)
    seen = {"clean": clean, "attack": attacked, "noise": noise}
    return {
        "success": float(found.success.double().mean()),
        "layers": layers,
        "moved": {kind: [_moved(clean.features[at], seen[kind].features[at]) for at in layers] for kind in KINDS},
        "own": {
            kind: [_own(clean.features[at], each.features[at], groups) for at in layers] for kind, each in seen.items()
        },
        "labels": {kind: _decorrelated(clean.logits, seen[kind].logits) for kind in KINDS},
    }


@torch.no_grad()
def _seen(probe: Probe, target: Target, images: Tensor) -> Observation:
    needs = Needs(frozenset({Signal.FEATURES}))
    return Observation.joined([probe.observe(target.view(part), needs) for part in torch.split(images, BATCH)])


def _moved(clean: Tensor, changed: Tensor) -> float:
    """Root of the mean squared distance that features (N, D) go, over that of clean ones from their mean."""
    spread = (clean - clean.mean(0)).square().sum(1).mean().sqrt()
    return float((changed - clean).square().sum(1).mean().sqrt() / spread.clamp_min(_FLOOR))


def _own(clean: Tensor, changed: Tensor, groups: Tensor) -> float:
    """The share of scans (N, D) that lie nearest to the clean mean of their own class, each dimension in its spread."""
    classes = sorted(set(groups.tolist()))
    scale = clean.std(0).clamp_min(_FLOOR)
    means = torch.stack([clean[groups == each].mean(0) for each in classes])
    nearest = torch.cdist(changed / scale, means / scale).argmin(1)
    return float((torch.tensor(classes)[nearest] == groups).double().mean())


def _decorrelated(clean: Tensor, changed: Tensor) -> float | None:
    """How far the correlations between labels' logits (N, K) go, in the mean over pairs."""
    labels = clean.shape[1]
    if labels < 3:
        return None
    pairs = ~torch.eye(labels, dtype=torch.bool)
    return float((torch.corrcoef(changed.T) - torch.corrcoef(clean.T))[pairs].abs().nan_to_num(0).mean())


def document(rows: Mapping[float, Mapping[str, Any]], scans: int, command: str, picture: str) -> str:
    """The document; every figure comes from a measurement."""
    lines = [
        "# What attacks do inside the model",
        "",
        f"Written by `{command}`; do not edit. Python {platform.python_version()}, torch {torch.__version__}, CPU.",
        "",
        f"{scans} test scans, attacked with PGD, and with noise of random signs of the same size. *Moved*: how far the",
        "features of a layer go, as a share of the clean scans' spread. *Own*: scans that lie nearest to the clean",
        "mean of their true class. *Labels*: mean change of the correlations between labels' scores; none with fewer",
        "than three.",
    ]
    for level, row in rows.items():
        said = [f"{kind} {value:.2f}" for kind, value in row["labels"].items() if value is not None]
        lines += [
            "",
            f"## {level:g} grey levels",
            "",
            f"The attack succeeds on {row['success']:.1%}." + (f" Labels: {', '.join(said)}." if said else ""),
            "",
            "| layer | moved, attack | moved, noise | own, clean | own, attack | own, noise |",
            "|---|---|---|---|---|---|",
            *(
                "| " + " | ".join([name, *(f"{value:.3g}" for value in values)]) + " |"
                for name, *values in zip(
                    row["layers"], *(row["moved"][kind] for kind in KINDS),
                    *(row["own"][kind] for kind in ("clean", *KINDS)), strict=True,
                )
            ),
        ]  # fmt: skip
    return "\n".join([*lines, "", f"![Features moved, and scans near their own class, by layer]({picture})"]) + "\n"


def _draw(rows: Mapping[float, Mapping[str, Any]], path: Path) -> None:
    """Two charts over the layers: how far features go, and how many scans stay near their own class."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of what draws

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    shades: Sequence[str] = ("#8ac1e6", "#4a9bd4", "#1274b8", "#062b4f")
    first = next(iter(rows.values()))
    layers = first["layers"]
    right.plot(layers, first["own"]["clean"], color="#d0560a", marker="s", label="clean")
    for (level, row), shade in zip(rows.items(), shades, strict=True):
        told = f"{level:g} grey level{'s' * (level > 1)}"
        left.plot(layers, row["moved"]["attack"], color=shade, marker="o", label=f"attack, {told}")
        left.plot(layers, row["moved"]["noise"], color=shade, marker=".", ls=":", label=f"noise, {told}")
        right.plot(layers, row["own"]["attack"], color=shade, marker="o")
    left.set(ylabel="features moved, share of their spread", yscale="log")
    right.set(ylabel="nearest to their own class", ylim=(-0.03, 1.03))
    for axes in (left, right):
        axes.grid(color="#e7ebef")
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
