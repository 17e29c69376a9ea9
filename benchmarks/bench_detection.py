"""What examining a batch costs, beside the network passes that it cannot do without."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from detectors.artifact import MANIFEST, Artefact
from detectors.denoisers.denoiser import Denoiser
from detectors.denoisers.dncnn import DnCNN
from detectors.ensemble import Ensemble
from detectors.neighbours.defaults import default_neighbours
from lab import phantoms
from lab.demo.material import BUNDLED
from report import Table, Target, hand_back, milliseconds, ratio, rounds
from untrained import RESNET18, RESNET50, Shape, ensemble

WANTED = 1.15
DECIDING = 16
"""The batch whose ratio is the target, and whose stages are told apart."""

Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Site:
    """A protected model with its detectors, and images for it."""

    name: str
    whole: Ensemble
    denoisers: Mapping[str, Denoiser]
    images: Tensor
    """As many as the largest batch has."""
    turns: Mapping[int, int]
    """By size of batch, how often each case is taken."""


def measure() -> Table:
    """Time detection and denoising beside their floors, in turns."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows, targets, notes = [], [], []
    for site in _sites(device):
        for size, turns in site.turns.items():
            batch = site.images[:size].contiguous()
            for what, ours, floor in _pairs(site, batch):
                seconds = rounds({"ours": _whole(ours, device), "floor": _whole(floor, device)}, turns, warm=2)
                times = ratio(seconds["ours"], seconds["floor"])
                rate = size / statistics.median(seconds["ours"])
                cells = [milliseconds(seconds[key]) for key in ("ours", "floor")]
                work = [f"{_flops(case) / size / 1e9:.3g}" for case in (ours, floor)]
                rows.append([f"{site.name}, {what}", str(size), *cells, f"{times:.2f}", f"{rate:.3g}", *work])
                if size == DECIDING:
                    target = f"{site.name}, {what}, batch {size}, by its floor"
                    targets.append(Target(target, f"at most {WANTED}", f"{times:.2f}", times <= WANTED))
            if size == DECIDING:
                notes.append(_stages(site, batch, turns, device))
    return Table(
        title=f"Detection and denoising, {_spoken(device)}",
        columns=["what", "batch", "ms", "floor, ms", "by its floor", "images/s", "GFLOP/image", "of the floor"],
        rows=rows,
        notes=[
            "The floor of detection is the bare passes through the same networks, on inputs made beforehand: one "
            "forward and one backward of the model, one forward over all neighbours, one forward of each twin; no "
            "filter, no score, no p-value, and not the small networks of gradient_residual, a detector's own. "
            "The floor of DnCNN is its bare network as it was trained. The median has no network: it stands beside "
            "`unfold` with `torch.median`, as one would write it, so there below 1 means faster. FLOPs are those of "
            "convolutions and matrix products, counted by torch. The ResNets are untrained: what they answer means "
            "nothing, and what they cost does not depend on it.",
            *notes,
        ],
        targets=targets,
    )


def _sites(device: torch.device) -> list[Site]:
    """The bundled model, and two of the sizes that hospitals run."""
    profile, folder = phantoms.profile(), BUNDLED / "detectors"
    model = (BUNDLED / "model.onnx").read_bytes()
    artefact = Artefact.load(folder, (folder / MANIFEST).read_bytes(), model, profile.sha256, device)
    slices = phantoms.rendered(phantoms.seeds("test", 64), profile).to(device)
    small = Site("phantom, 128", artefact.ensemble, artefact.denoisers, slices, {1: 30, 4: 15, 16: 9, 64: 3})
    large = {1: 8, 4: 3, 16: 3, 64: 3}
    if device.type == "cpu":
        del large[64]  # minutes of it
    return [small, _untrained(RESNET18, {1: 15, 4: 7, 16: 5, 64: 3}, device), _untrained(RESNET50, large, device)]


def _untrained(shape: Shape, turns: Mapping[int, int], device: torch.device) -> Site:
    whole, denoisers = ensemble(shape, device)
    noise = torch.rand(max(turns), 1, shape.size // 8, shape.size // 8, device=device)
    images = functional.interpolate(noise, (shape.size, shape.size), mode="bilinear")
    return Site(f"{shape.name}, {shape.size}", whole, denoisers, images, turns)


def _pairs(site: Site, batch: Tensor) -> list[tuple[str, Work, Work]]:
    """Each piece of work and its floor."""
    floor = list(_floor(site.whole, batch).values())

    def passes() -> None:
        for run in floor:
            run()

    pairs: list[tuple[str, Work, Work]] = [("detection", lambda: site.whole.examine(batch), passes)]
    for name, denoiser in site.denoisers.items():
        network = denoiser._network if isinstance(denoiser, DnCNN) else _median_by_sorting
        pairs.append((name, _quietly(lambda d=denoiser: d(batch)), _quietly(lambda n=network: n(batch))))
    return pairs


def _floor(whole: Ensemble, batch: Tensor) -> dict[str, Work]:
    """The bare passes, by name."""
    probe = whole.probe
    unit = probe.span.to_unit(batch)
    neighbours = probe.span.from_unit(torch.cat([shift(unit) for shift in default_neighbours()]))

    def forth_and_back() -> None:
        leaf = batch.detach().requires_grad_(True)
        torch.autograd.grad(probe.reference.forward_with_taps(leaf, ())[0].amax(1).sum(), leaf)

    twins = {name: _quietly(lambda t=twin: t.look(unit)) for name, twin in probe.twins.items()}
    asked = _quietly(lambda: probe.reference(neighbours))
    return {"model forward and backward": forth_and_back, "neighbours asked": asked, **twins}


def _stages(site: Site, batch: Tensor, turns: int, device: torch.device) -> str:
    """Where a batch goes, stage by stage, each taken alone."""
    whole = site.whole
    with torch.no_grad():
        unit = whole.probe.span.to_unit(batch)
        seen = whole.probe.observe(batch, whole.needs)
    cases = {**_floor(whole, batch)}
    for neighbour in default_neighbours():
        cases[f"{neighbour.name} made"] = _quietly(lambda n=neighbour: n(unit))
    for member in whole.members:
        cases[f"{member.detector.name} scored"] = _quietly(lambda d=member.detector: d.score(seen))
    seconds = rounds({name: _whole(run, device) for name, run in cases.items()}, turns)
    parts = [f"{name} {milliseconds(taken)}" for name, taken in seconds.items() if statistics.median(taken) >= 2e-4]
    return f"Where a batch of {len(batch)} goes, {site.name}, in ms and from 0.2 on: {', '.join(parts)}."


def _flops(work: Work) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def _whole(work: Work, device: torch.device) -> Work:
    """The work and, on an accelerator, its end."""
    if device.type == "cpu":
        return work

    def run() -> None:
        work()
        torch.cuda.synchronize(device)

    return run


def _spoken(device: torch.device) -> str:
    return "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)


def _quietly(work: Work) -> Work:
    def run() -> None:
        with torch.no_grad():
            work()

    return run


def _median_by_sorting(batch: Tensor) -> Tensor:
    """(N, C, H, W): the 3 x 3 median as one would write it in torch."""
    count, channels, rows, columns = batch.shape
    windows = functional.unfold(functional.pad(batch, (1, 1, 1, 1), mode="replicate"), 3)
    return windows.view(count, channels, 9, rows * columns).median(2).values.view_as(batch)


if __name__ == "__main__":
    hand_back(measure())
