"""What examining a batch costs, beside the network passes that it cannot do without."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from detectors.artifact import MANIFEST, Artefact
from detectors.denoisers.denoiser import Denoiser
from detectors.denoisers.dncnn import DnCNN
from detectors.neighbours.defaults import default_neighbours
from lab import phantoms
from lab.demo.material import BUNDLED
from report import Table, Target, hand_back, milliseconds, ratio, rounds

BATCHES = (1, 16)
ROUNDS = 20
WANTED = 1.15

Work = Callable[[], object]


def measure() -> Table:
    """Time detection and denoising beside their floors, in turns."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    profile = phantoms.profile()
    folder = BUNDLED / "detectors"
    model = (BUNDLED / "model.onnx").read_bytes()
    artefact = Artefact.load(folder, (folder / MANIFEST).read_bytes(), model, profile.sha256, torch.device("cpu"))
    images = phantoms.rendered(phantoms.seeds("test", max(BATCHES)), profile)
    rows, targets = [], []
    for size in BATCHES:
        for name, ours, floor in _pairs(artefact, images[:size].contiguous()):
            seconds = rounds({"ours": ours, "floor": floor}, ROUNDS, warm=3)
            times = ratio(seconds["ours"], seconds["floor"])
            rows.append([name, str(size), *(milliseconds(seconds[key]) for key in ("ours", "floor")), f"{times:.2f}"])
            target = f"{name}, batch {size}, by its floor"
            targets.append(Target(target, f"at most {WANTED}", f"{times:.2f}", times <= WANTED))
    return Table(
        title=f"Detection and denoising, {images.shape[2]} x {images.shape[3]} pixels, CPU",
        columns=["what", "batch", "ms", "floor, ms", "by its floor"],
        rows=rows,
        notes=[
            "The floor of detection is the bare passes through the same networks, on inputs made beforehand: one "
            "forward and one backward of the model, one forward over all neighbours, one forward of each twin; no "
            "filter, no score, no p-value. The floor of DnCNN is its bare network. The median has no network: it "
            "stands beside `unfold` with `torch.median`, as one would write it, so there below 1 means faster.",
        ],
        targets=targets,
    )


def _pairs(artefact: Artefact, batch: Tensor) -> list[tuple[str, Work, Work]]:
    """Each piece of work and its floor."""
    pairs: list[tuple[str, Work, Work]] = [
        ("detection", lambda: artefact.ensemble.examine(batch), _detection_floor(artefact, batch))
    ]
    for name, denoiser in artefact.denoisers.items():
        pairs.append((f"denoising, {name}", _quietly(denoiser, batch), _denoising_floor(denoiser, batch)))
    return pairs


def _detection_floor(artefact: Artefact, batch: Tensor) -> Work:
    probe = artefact.ensemble.probe
    unit = probe.span.to_unit(batch)
    neighbours = probe.span.from_unit(torch.cat([shift(unit) for shift in default_neighbours()]))

    def run() -> None:
        leaf = batch.detach().requires_grad_(True)
        torch.autograd.grad(probe.reference(leaf).amax(1).sum(), leaf)
        with torch.no_grad():
            probe.reference(neighbours)
            for twin in probe.twins.values():
                twin.look(unit)

    return run


def _quietly(denoiser: Denoiser, batch: Tensor) -> Work:
    def run() -> None:
        with torch.no_grad():
            denoiser(batch)

    return run


def _denoising_floor(denoiser: Denoiser, batch: Tensor) -> Work:
    network = denoiser._network if isinstance(denoiser, DnCNN) else _median_by_sorting

    def run() -> None:
        with torch.no_grad():
            network(batch)

    return run


def _median_by_sorting(batch: Tensor) -> Tensor:
    """(N, C, H, W): the 3 x 3 median as one would write it in torch."""
    count, channels, rows, columns = batch.shape
    windows = functional.unfold(functional.pad(batch, (1, 1, 1, 1), mode="replicate"), 3)
    return windows.view(count, channels, 9, rows * columns).median(2).values.view_as(batch)


if __name__ == "__main__":
    hand_back(measure())
