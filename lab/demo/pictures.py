"""Before, after and where it matters: one picture for each scan that the detectors had something to say about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from detectors.artifact import Artefact
from detectors.filters import gaussian
from detectors.observation import Needs, Signal
from gateway.pixels.imaging import render
from lab.demo.material import Material
from lab.demo.prepare import Prepared
from lab.demo.rows import Preparation

PICTURED = {
    Preparation.ATTACKED: "unsigned-adversarial",
    Preparation.ATTACKED_THEN_SIGNED: "signed-adversarial",
    Preparation.GREY: "grey-zone",
}
SMOOTHING = 1.5
"""Standard deviation of the heat map's smoothing, in pixels of the model's input."""


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
    denoise = next(iter(artefact.denoisers.values()))
    with torch.no_grad():
        denoised = denoise(sent)
    heat = _heat(artefact, sent, denoised)

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    axes = figure.subplots(1, 4)
    low, high = material.profile.input.range
    grey = {"cmap": "gray", "vmin": low, "vmax": high}
    axes[0].imshow(_plane(clean), **grey)
    axes[0].set_title("before: as the scanner made it" if attacked else "as it came")
    axes[1].imshow(_plane(sent if attacked else denoised), **grey)
    axes[1].set_title("after: as it was sent" if attacked else "denoised: what the model receives")
    change = _plane(sent - clean if attacked else denoised - sent) * 255 / (high - low)
    bound = float(change.abs().max()) or 1.0
    shown = axes[2].imshow(change, cmap="RdBu_r", vmin=-bound, vmax=bound)
    axes[2].set_title("what was changed" if attacked else "what denoising took and gave")
    figure.colorbar(shown, ax=axes[2], shrink=0.8, label="grey levels of 256")
    axes[3].imshow(_plane(sent), **grey)
    glow = axes[3].imshow(heat, cmap="inferno", alpha=(heat / heat.max().clamp_min(1e-12)).sqrt() * 0.85)
    axes[3].set_title("where it bears on the diagnosis")
    figure.colorbar(glow, ax=axes[3], shrink=0.8, label="share of the noise in the decision")
    for axis in axes:
        axis.set_axis_off()
    answer = f"the model says '{scan.diagnosis_undefended}'" + (" (wrong)" if scan.fooled else "")
    figure.suptitle(f"{path.stem}: {answer}. Not for diagnosis.", fontsize=11)
    figure.savefig(path, dpi=110)
    return path


def _heat(artefact: Artefact, sent: Tensor, denoised: Tensor) -> Tensor:
    """(rows, columns), 0 to 1: size of margin gradient times what denoising removes, smoothed.

    The gradient of the predicted class's lead, times the difference to the denoised image, is to first order what
    each pixel's noise adds to the decision (Simonyan et al. 2014, arXiv:1312.6034, on the difference).
    """
    seen = artefact.ensemble.probe.observe(sent, Needs(frozenset({Signal.INPUT_GRADIENT})))
    assert seen.input_gradient is not None
    weight = (seen.input_gradient * (sent - denoised)).abs().sum(1, keepdim=True)
    smooth = gaussian(weight, SMOOTHING)[0, 0]
    return smooth / smooth.max().clamp_min(1e-12)


def _plane(images: Tensor) -> Tensor:
    return images[0].mean(0)
