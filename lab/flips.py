"""Measures how often common perturbations flip an answer, and if detectors stay calm: `python -m lab.flips`.

Xu et al. 2021, arXiv:2103.03438, after Hendrycks and Dietterich 2019, arXiv:1903.12261: a perturbation grows over the
frames of a sequence; the flip rate is the share of consecutive frames between which the answer changes.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib as mpl
import torch
from torch import Tensor

from detectors.artifact import Artefact
from detectors.ensemble import Ensemble
from detectors.filters import gaussian
from detectors.neighbours.geometry import Rotation
from detectors.neighbours.jpeg import Jpeg
from gateway.durable import replace
from gateway.pixels.imaging import from_uint8
from gateway.profile import Profile
from lab import sealing
from lab.data import stored
from lab.seeds import seeds_of
from lab.statistics import clopper_pearson
from lab.workbench import BATCH

FRAMES = 10
REPORT = Path("docs/results-flips.md")


def _noise(images: Tensor) -> Tensor:
    """The same noise for all frames, so that only its size grows."""
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(1))


PERTURBATIONS: Mapping[str, tuple[str, Callable[[Tensor, float], Tensor]]] = {
    "Gaussian noise": ("to 8 grey levels", lambda x, share: x + 8 / 255 * share * _noise(x)),
    "speckle": ("to 8 % of the signal", lambda x, share: x * (1 + 0.08 * share * _noise(x))),
    "brightness": ("to +20 grey levels", lambda x, share: x + 20 / 255 * share),
    "contrast": ("to -20 %", lambda x, share: 0.5 + (x - 0.5) * (1 - 0.2 * share)),
    "blur": ("to 1.5 pixels", lambda x, share: gaussian(x, 1.5 * share)),
    "rotation": ("to 5 degrees", lambda x, share: Rotation(5 * share)(x)),
    "move": ("to 5 pixels", lambda x, share: x.roll(round(5 * share), 3)),
    "JPEG": ("from quality 95 to 50", lambda x, share: Jpeg(round(95 - 45 * share))(x)),
}
"""By name, the size of the last frame, and the change of (N, 1, rows, columns) images, 0 to 1, at a share of it."""


@click.command()
@click.option("--model", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--profile", "profile_path", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--detectors", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--data", "data_path", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--images", default=200, show_default=True, help="test scans at most")
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), default=Path(".cache/flips"))
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=REPORT, show_default=True)
def main(
    *, model: Path, profile_path: Path, detectors: Path, data_path: Path, images: int, work: Path, out: Path
) -> None:
    """Perturb test scans frame by frame; perturbations that were measured before are taken from the work folder."""
    profile = Profile.load(profile_path)
    manifest = sealing.unchecked(detectors)
    artefact = Artefact.load(detectors, manifest, model.read_bytes(), profile.sha256, torch.device("cpu"))
    scans, fpr = stored(data_path, "test", profile).images[:images], float(artefact.manifest["fpr"])
    folder = work / f"{artefact.manifest['model_sha256'][:16]}-{data_path.stem}-{len(scans)}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = {}
    for name in PERTURBATIONS:
        kept = folder / f"{name}.json"
        if not kept.exists():
            replace(kept, json.dumps(measure(artefact.ensemble, profile, scans, name, fpr)).encode())
        rows[name] = json.loads(kept.read_bytes())
    picture = out.with_suffix(".png")
    _draw(rows, picture)
    command = f"python -m lab.flips --data {data_path.name} --images {len(scans)}"
    out.write_text(document(rows, len(scans), fpr, command, picture.name), encoding="utf-8")


def measure(ensemble: Ensemble, profile: Profile, scans: Tensor, name: str, fpr: float) -> dict[str, Any]:
    """One perturbation.

    Args:
        ensemble: the model's probe, and what stands in front of it.
        profile: of the model.
        scans: (N, 1, rows, columns) 8-bit stored values.
        name: of `PERTURBATIONS`.
        fpr: p-values up to it are flagged.

    Returns:
        `changed`, of each frame the share of scans read otherwise than at first; `rate`, flips between consecutive
        frames; `ever`, scans that flip at all; `flagged`, in the last frame; the last two with their intervals.
    """
    change = PERTURBATIONS[name][1]
    answers, flags = [], torch.zeros(len(scans), dtype=torch.bool)
    for frame in range(FRAMES + 1):
        shown = scans if frame == 0 else (change(scans / 255, frame / FRAMES) * 255).round().clamp(0, 255)
        found = [ensemble.examine(part, seeds_of(part)) for part in torch.split(from_uint8(shown, profile), BATCH)]
        answers.append(torch.cat([each.predictions for each in found]).reshape(len(scans), -1))
        flags = torch.cat([each.p_value <= fpr for each in found])
    same = torch.stack(answers)  # (frames, N, parts of a decision)
    flips = (same[1:] != same[:-1]).any(2)
    return {
        "changed": (same != same[0]).any(2).double().mean(1).tolist(),
        "rate": float(flips.double().mean()),
        "ever": clopper_pearson(int(flips.any(0).sum()), len(scans)),
        "flagged": clopper_pearson(int(flags.sum()), len(scans)),
    }


def document(rows: Mapping[str, Mapping[str, Any]], scans: int, fpr: float, command: str, picture: str) -> str:
    """The document; every figure comes from a measurement."""
    lines = [
        "# Common perturbations",
        "",
        f"Written by `{command}`; do not edit. Python {platform.python_version()}, torch {torch.__version__}, CPU.",
        "",
        f"{scans} test scans, each perturbed in {FRAMES} frames of growing size, rounded to storable values. *Flips*:",
        "of consecutive frames, how many differ in the model's answer. *Ever*: scans whose answer flips at all.",
        f"*Flagged*: at p <= {fpr:g} in the last frame, which is honest. Brackets are 95 % Clopper-Pearson.",
        "",
        "| perturbation | last frame | flips | ever | flagged |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {PERTURBATIONS[name][0]} | {each['rate']:.2%} | {_rate(each['ever'])} | "
            f"{_rate(each['flagged'])} |"
            for name, each in rows.items()
        ),
        "",
        f"![Scans read otherwise than at first, over the frames]({picture})",
    ]
    return "\n".join(lines) + "\n"


def _rate(found: Mapping[str, float]) -> str:
    return f"{found['rate']:.1%} [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"


def _draw(rows: Mapping[str, Mapping[str, Sequence[float]]], path: Path) -> None:
    """Scans read otherwise than at first, over the frames."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the choice of what draws

    colours = ("#0068a8", "#d0560a", "#0b8a66", "#a04a80", "#a87600", "#3a97cf", "#4e5965", "#7c4418")
    figure, axes = plt.subplots(figsize=(7.2, 3.8), layout="constrained")
    for (name, row), colour, mark in zip(rows.items(), colours, "osD^v<>P", strict=True):
        axes.plot([100 * share for share in row["changed"]], color=colour, marker=mark, label=name)
    axes.set(xlabel="frame", ylabel="read otherwise than at first, %", ylim=(0, None))
    axes.grid(color="#e7ebef")
    axes.legend(frameon=False, ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
