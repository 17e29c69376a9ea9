"""Measures how soon drift is told, how seldom without cause, and how far a threshold can be walked: `make drift`."""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from detectors.artifact import Promises
from detectors.calibration import ConformalCalibration
from detectors.drift import Family, total
from detectors.ensemble import JOINED
from gateway.pixels.imaging import render
from gateway.profile import Profile
from lab import phantoms, recalibration, sealing
from lab.data import MovedTooFarError
from lab.drawing.scanner import STORED_MAX
from lab.phantom_detectors import PUBLIC_KEY
from lab.seeds import seeds_of
from lab.walking import FPR, Walk

REPORT = Path("docs/results-drift.md")
BETWEEN = 100_000.0
"""The default of `patients_between_false_alarms`."""
DETECTORS = 9
"""Of the bundled artefact, the joined one included: they share the promise."""
ORDERS = 100
"""In which the slices of a changed scanner are shown."""
_SKIP = 50_000
"""Seeds of `test` that other figures are taken from."""

_POISON = 0.02
"""Share of the scans that an attacker chooses."""

Streams = Mapping[str, NDArray[np.float64]]
"""p-values by detector, (N,)."""


def _softer(frames: Tensor) -> Tensor:
    """A Gaussian of 2.5 pixels over (N, 1, rows, columns)."""
    ticks = torch.arange(-9.0, 10.0)
    bell = torch.exp(-(ticks**2) / (2 * 2.5**2))
    bell = bell / bell.sum()
    wide = functional.conv2d(functional.pad(frames, (9, 9, 0, 0), mode="replicate"), bell[None, None, None, :])
    return functional.conv2d(functional.pad(wide, (0, 0, 9, 9), mode="replicate"), bell[None, None, :, None])


def _noise(frames: Tensor, hounsfield: float) -> Tensor:
    """White noise with this standard deviation, the same each time."""
    return frames + hounsfield * torch.randn(frames.shape, generator=torch.Generator().manual_seed(1))


SCANNERS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "unchanged": lambda frames: frames,
    "contrast 3 % less": lambda frames: 0.97 * frames,
    "a softer kernel (2.5 pixels)": _softer,
    "noise of 12 HU more": lambda frames: _noise(frames, 12.0),
    "noise of 25 HU more": lambda frames: _noise(frames, 25.0),
}
"""What an update may do to stored values (N, 1, rows, columns)."""


@dataclass(frozen=True, slots=True)
class Delay:
    """After how many patients drift was told."""

    name: str
    told: int
    orders: int
    """Streams that were shown."""
    median: float
    most: float
    """Nine streams of ten told by then."""
    flagged: float
    """Share with p <= 0.01: what would be held."""
    first: str
    """Which detectors told first, the most frequent one."""


@click.command()
@click.option("--assets", type=click.Path(exists=True, path_type=Path), default=phantoms.ASSETS, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=REPORT, show_default=True)
@click.option("--slices", default=150, show_default=True, help="drawn slices for each scanner")
@click.option("--streams", default=200, show_default=True, help="simulated streams of each kind")
@click.option("--threads", default=0, show_default=True, help="threads that measure; 0: as torch chooses")
def main(*, assets: Path, out: Path, slices: int, streams: int, threads: int) -> None:
    """Measure, draw, and write the report."""
    if threads:
        torch.set_num_threads(threads)
    simulated = [_simulated(n, shift, streams) for n in (300, 1200) for shift in (0.5, 1.0, 2.0, -1.0)]  # (1)
    alarms = {n: _false_alarms(n, streams) for n in (300, 1200)}
    family, scanned = _scanned(assets, slices)  # (2)
    drawn = [_delay(name, family, stream) for name, stream in scanned.items()]
    refused = {n: _refused(n, streams) for n in (300, 1000, 3000)}  # (3)
    walks = _walks(30)
    _draw_evidence(family, scanned, out.with_name("results-drift-evidence.png"))
    _draw_walks(walks, out.with_name("results-drift-walk.png"))
    command = f"python -m lab.drift_results --slices {slices} --streams {streams}"
    out.write_text(_report(command, simulated, alarms, drawn, refused, walks))


def _calibrated(n: int, rng: np.random.Generator) -> ConformalCalibration:
    return ConformalCalibration.fit(torch.from_numpy(rng.standard_normal(n)), FPR)


def _p_values(fitted: ConformalCalibration, statistics: NDArray[np.float64]) -> list[float]:
    found: list[float] = fitted.p_value(torch.from_numpy(statistics)).tolist()
    return found


def _told(family: Family, stream: Streams, order: NDArray[np.intp] | None = None) -> tuple[int, str] | None:
    """After how many patients, and by which detector; None where the stream ends first."""
    sums = family.start()
    places = order if order is not None else np.arange(len(next(iter(stream.values()))))
    for count, place in enumerate(places, 1):
        sums, drifts = family.after(sums, {name: float(values[place]) for name, values in stream.items()})
        if drifts:
            return count, max(drifts, key=lambda drift: drift.evidence).detector
    return None


def _simulated(n: int, shift: float, streams: int) -> Delay:
    """Normal statistics that move by so many standard deviations; a threshold as for `DETECTORS` detectors."""
    rng = np.random.default_rng([n, round(10 * abs(shift)), int(shift > 0)])
    told, flagged = [], []
    for _ in range(streams):
        fitted = _calibrated(n, rng)
        family = Family({"a": fitted}, scans_between_false_alarms=DETECTORS * BETWEEN)
        p_values = np.array(_p_values(fitted, rng.standard_normal(1000) + shift))
        flagged.append(float((p_values <= FPR).mean()))
        if (found := _told(family, {"a": p_values})) is not None:
            told.append(found[0])
    return _summed(f"{shift:+g} standard deviations, {n} calibration scans", told, streams, flagged, [])


def _false_alarms(n: int, streams: int) -> tuple[int, int, float]:
    """Alarms, patients, and the promise, at a threshold low enough that some could be seen."""
    rng, found, between = np.random.default_rng([n, 7]), 0, 1000.0
    for _ in range(streams):
        fitted = _calibrated(n, rng)
        family = Family({"a": fitted}, scans_between_false_alarms=between)
        sums = family.start()
        for p_value in _p_values(fitted, rng.standard_normal(1000)):
            sums, drifts = family.after(sums, {"a": p_value})
            found += len(drifts)
    return found, 1000 * streams, between


def _scanned(assets: Path, slices: int) -> tuple[Family, dict[str, Streams]]:
    """p-values of the bundled detectors on drawn slices, as each scanner would have stored them."""
    profile = Profile.load(assets / "profile.toml")
    manifest = sealing.believed(assets / "detectors", [assets / PUBLIC_KEY])
    model = (assets / "model.onnx").read_bytes()
    ensemble = sealing.opened(assets / "detectors", manifest, model, profile, torch.device("cpu"))
    family = Family(Promises.read(assets / "detectors", manifest).deployed, scans_between_false_alarms=BETWEEN)
    streams: dict[str, dict[str, list[float]]] = {name: {} for name in SCANNERS}
    for stored in phantoms.stored(phantoms.seeds("test", slices, skip=_SKIP), workers=min(2, os.cpu_count() or 1)):
        frames = torch.from_numpy(stored.astype(np.float32))[None, None]
        for name, scanner in SCANNERS.items():
            changed = scanner(frames).round().clamp(0, STORED_MAX)
            image = render(changed[0], phantoms.RENDERING, profile)
            seen = ensemble.examine(image, seeds_of(image))
            for detector, values in {**seen.p_values, JOINED: seen.p_value}.items():
                streams[name].setdefault(detector, []).append(float(values))
    arrays = {name: {each: np.array(values) for each, values in by.items()} for name, by in streams.items()}
    return family, dict(arrays)


def _delay(name: str, family: Family, stream: Streams) -> Delay:
    """How soon a scanner that changed before the first slice is told, over many orders of the slices."""
    rng = np.random.default_rng(3)
    count = len(stream[JOINED])
    found = [_told(family, stream, rng.permutation(count)) for _ in range(ORDERS)]
    told = [each[0] for each in found if each is not None]
    by = [each[1] for each in found if each is not None]
    return _summed(name, told, ORDERS, [float((stream[JOINED] <= FPR).mean())], by)


def _summed(name: str, told: Sequence[int], orders: int, flagged: Sequence[float], by: Sequence[str]) -> Delay:
    times = np.array([*told, *[np.inf] * (orders - len(told))])
    first = max(set(by), key=by.count) if by else ""
    median, most = (float(np.quantile(times, q, method="inverted_cdf")) for q in (0.5, 0.9))
    return Delay(name, len(told), orders, median, most, float(np.mean(flagged)), first)


def _refused(n: int, trials: int) -> float:
    """Share of recalibrations of an unchanged source that the bound refuses."""
    refused = 0
    for trial in range(trials):
        walk = Walk.begin(seed=trial, scans=1200)
        try:
            recalibration.refuse_far(walk.step(0.0, 0.0, n).movements, recalibration.BOUND, accept_movement=False)
        except MovedTooFarError:
            refused += 1
    return refused / trials


def _walks(steps: int) -> dict[str, list[float]]:
    """Movement of the threshold after each step, a few scans being the attacker's, by what is compared with."""
    walks = {"the last step": Walk.begin(seed=11), "the anchor": Walk.begin(seed=11)}
    moved: dict[str, list[float]] = {name: [0.0] for name in walks}
    start = walks["the anchor"].threshold
    for _ in range(steps):
        for name, walk in walks.items():
            before, proposal = walk.threshold, walk.step(share=_POISON, above=0.15)
            if name == "the anchor":
                far = any(abs(each.moved) > recalibration.BOUND for each in proposal.movements)
            else:
                far = abs(proposal.calibrations[JOINED].threshold(FPR) - before) > recalibration.BOUND
            if not far:
                walk.take(proposal)
            moved[name].append(walk.threshold - start)
    return moved


def _draw_evidence(family: Family, scanned: Mapping[str, Streams], path: Path) -> None:
    """The evidence of the loudest detector, half of the slices unchanged, then the rest from each scanner."""
    import matplotlib as mpl  # noqa: PLC0415 - heavy, and needs a backend before pyplot

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 4.2), constrained_layout=True)
    for name, stream in scanned.items():
        sums, heights, half = family.start(), [], len(stream[JOINED]) // 2
        for place in range(len(stream[JOINED])):
            of = scanned["unchanged"] if place < half else stream
            sums, drifts = family.after(sums, {detector: float(values[place]) for detector, values in of.items()})
            loudest = max(total(each) for each in sums.values())
            heights.append(max([loudest, *(drift.evidence for drift in drifts)]) / family.threshold)
        axes.semilogy(range(1, len(heights) + 1), heights, label=name)
    axes.axhline(1.0, color="black", linestyle="--", linewidth=1)
    axes.axvline(half, color="grey", linestyle=":", linewidth=1)
    axes.set(
        xlabel="patient", ylabel="evidence / threshold", title="Drawn slices, the scanner updated at the dotted line"
    )
    axes.set_ylim(1e-7, 1e3)
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _draw_walks(walks: Mapping[str, Sequence[float]], path: Path) -> None:
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 3.6), constrained_layout=True)
    for name, moved in walks.items():
        axes.plot(moved, marker=".", label=f"each step within {recalibration.BOUND:g} of {name}")
    axes.axhline(recalibration.BOUND, color="black", linestyle="--", linewidth=1)
    axes.set(
        xlabel="recalibrations",
        ylabel="movement of the threshold, nats",
        title=f"{_POISON:.0%} of the scans are the attacker's",
    )
    axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _report(
    command: str,
    simulated: Sequence[Delay],
    alarms: Mapping[int, tuple[int, int, float]],
    drawn: Sequence[Delay],
    refused: Mapping[int, float],
    walks: Mapping[str, Sequence[float]],
) -> str:
    where = f"Python {platform.python_version()}, torch {torch.__version__}, CPU"
    rows = [
        "# How soon drift is told, and how far a threshold can be walked",
        "",
        f"Written by `{command}` (`make drift`); do not edit. {where}.",
        "",
        f"Delays are patients from the change to the alarm, at the default of {BETWEEN:,.0f} patients between false",
        "alarms of any detector. What the words mean: [drift.md](drift.md).",
        "",
        "## Simulated sources",
        "",
        f"A detector with normal scores among {DETECTORS}; the source changes before the first patient. Median, and",
        "the number by which nine streams of ten were told, of streams of 1,000 patients.",
        "",
        "| change | told | median | nine of ten | flagged at p <= 0.01 |",
        "| --- | --- | --- | --- | --- |",
        *(f"| {each.name} | {each.told}/{each.orders} | {_times(each)} | {each.flagged:.1%} |" for each in simulated),
        "",
        "False alarms of unchanged sources, at a threshold low enough that there could be some:",
        "",
        "| calibration scans | patients | alarms | promised at most |",
        "| --- | --- | --- | --- |",
        *(f"| {n} | {seen:,} | {found} | {seen / between:,.0f} |" for n, (found, seen, between) in alarms.items()),
        "",
        "## Drawn slices, the bundled detectors",
        "",
        f"One slice a patient; {ORDERS} orders of the same slices. Unchanged slices must not be told.",
        "",
        "| scanner | told | median | nine of ten | flagged at p <= 0.01 | told first by |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {each.name} | {each.told}/{each.orders} | {_times(each)} | {each.flagged:.1%} | {each.first or '-'} |"
            for each in drawn
        ),
        "",
        "![Evidence over patients](results-drift-evidence.png)",
        "",
        "## Recalibration",
        "",
        f"An unchanged source is refused at the default bound of {recalibration.BOUND:g} with this frequency, by",
        "chance alone (1,200 scans in the anchor, one detector):",
        "",
        "| new scans | refused |",
        "| --- | --- |",
        *(f"| {n:,} | {share:.1%} |" for n, share in refused.items()),
        "",
        f"An attacker who owns {_POISON:.0%} of the scans and puts them just above the threshold moves it by "
        f"{walks['the last step'][-1]:.1f} nats in",
        f"{len(walks['the anchor']) - 1} recalibrations where each is compared with the last, and by "
        f"{walks['the anchor'][-1]:.1f} where it is compared with the anchor.",
        "",
        "![Movement over recalibrations](results-drift-walk.png)",
        "",
    ]
    return "\n".join(rows)


def _times(delay: Delay) -> str:
    return " | ".join(f"{each:.0f}" if np.isfinite(each) else "-" for each in (delay.median, delay.most))


if __name__ == "__main__":
    main()
