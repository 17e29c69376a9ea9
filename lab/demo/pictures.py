"""Before, after and where it matters: one picture for each scan that the detectors had something to say about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from detectors.artifact import Artefact
from detectors.heat import drawn
from gateway.pixels.imaging import render
from lab.demo.material import Material
from lab.demo.prepare import Prepared
from lab.demo.rows import Preparation

PICTURED = {
    Preparation.ATTACKED: "unsigned-adversarial",
    Preparation.ATTACKED_THEN_SIGNED: "signed-adversarial",
    Preparation.GREY: "grey-zone",
}


def draw_pictures(material: Material, scans: Mapping[Preparation, Prepared], directory: Path) -> list[Path]:
    """Write the PNG files; returns their paths in the order of the table."""
    mpl.use("Agg")
    directory.mkdir(parents=True, exist_ok=True)
    manifest = (material.detectors / "manifest.json").read_bytes()
    artefact = Artefact.load(
        material.detectors, manifest, material.model_file.read_bytes(), material.profile.sha256, torch.device("cpu")
    )
    return [_draw(material, artefact, scans[kind], directory / f"{name}.png") for kind, name in PICTURED.items()]


def _draw(material: Material, artefact: Artefact, scan: Prepared, path: Path) -> Path:
    before = scan.before
    assert before is not None, "only scans with pixels are pictured"
    attacked = scan.after is not None
    clean = render(before, material.rendering, material.profile)
    sent = render(scan.after, material.rendering, material.profile) if scan.after is not None else clean
    with torch.no_grad():
        denoised = next(iter(artefact.denoisers.values()))(sent)
    heat = drawn(artefact.ensemble.probe, sent, artefact.denoisers)[0]

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    axes = figure.subplots(1, 4)
    low, high = material.profile.input.range
    clean, sent, denoised = ((each - low) / (high - low) for each in (clean, sent, denoised))
    grey = {"cmap": "gray", "vmin": 0.0, "vmax": 1.0}
    axes[0].imshow(_light(clean), **grey)
    axes[0].set_title("before: as the scanner made it" if attacked else "as it came")
    axes[1].imshow(_light(sent if attacked else denoised), **grey)
    axes[1].set_title("after: as it was sent" if attacked else "denoised: what the model receives")
    change = (sent - clean if attacked else denoised - sent)[0].mean(0) * 255
    bound = float(change.abs().max()) or 1.0
    shown = axes[2].imshow(change, cmap="RdBu_r", vmin=-bound, vmax=bound)
    axes[2].set_title("what was changed" if attacked else "what denoising took and gave")
    figure.colorbar(shown, ax=axes[2], shrink=0.8, label="grey levels of 256")
    axes[3].imshow(_light(sent), **grey)
    glow = axes[3].imshow(heat, cmap="inferno", alpha=(heat / heat.max().clamp_min(1e-12)).sqrt() * 0.85)
    axes[3].set_title("where the model's reasons change\nwhen noise is taken out")
    figure.colorbar(glow, ax=axes[3], shrink=0.8, label="change of the model's score, for each pixel")
    for axis in axes:
        axis.set_axis_off()
    answer = f"the model says '{scan.diagnosis_undefended}'" + (" (wrong)" if scan.fooled else "")
    figure.suptitle(f"{path.stem}: {answer}. Not for diagnosis.", fontsize=11)
    figure.savefig(path, dpi=110)
    return path


def _light(images: Tensor) -> Tensor:
    """(rows, columns, 1 or 3), 0 to 1, of the first image."""
    return images[0].permute(1, 2, 0).clamp(0, 1)
