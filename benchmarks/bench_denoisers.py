"""What denoisers cost, beside scikit-image here and OpenCV, kornia and ART in an environment of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from skimage import restoration

from detectors.denoisers.denoiser import Denoiser
from detectors.denoisers.median import Median
from detectors.denoisers.registry import KINDS
from detectors.denoisers.windowed import Windowed
from detectors.observation import LEVEL, Span
from lab import phantoms
from report import ROOT, Table, Target, hand_back, milliseconds, ratio, rounds

BATCH, ROUNDS = 16, 3
WANTED = 10.0
PEERS = ROOT / ".cache" / "peers" / "denoisers"


def measure() -> Table:
    """Time each filter on a batch of drawn slices, in turns with the others."""
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    profile = phantoms.profile()
    low, high = profile.input.range
    span = Span((low,), (high,))
    images = phantoms.rendered(phantoms.seeds("test", BATCH), profile)
    unit = span.to_unit(images).contiguous()
    ours = _ours(unit)
    with _peers(unit.numpy(), threads) as others:
        cases = {**ours, **_scikit_image(unit.numpy()[:, 0]), **others}
        seconds = rounds(cases, ROUNDS)
    rows, targets = [], []
    for name in ours:
        rows.append([name, "Scanward", milliseconds(seconds[name]), ""])
        for case in cases:
            if case.startswith(f"{name}, "):
                times = ratio(seconds[case], seconds[name])
                library = case.removeprefix(f"{name}, ")
                rows.append([name, library, milliseconds(seconds[case]), f"{times:.2g}"])
                what = f"{name}: faster than {library}"
                targets.append(Target(what, f"at least {WANTED:g} times", f"{times:.2g}", times >= WANTED))
    return Table(
        title=f"Filters, {BATCH} images of {unit.shape[2]} x {unit.shape[3]} pixels, CPU",
        columns=["filter", "by", "ms", "Scanward is faster by"],
        rows=rows,
        notes=[
            "Peers run with the nearest settings they have, one image after the other where they take no batch; "
            "those marked 8 bits lose what is finer. Only kornia's and ours have a gradient. scikit-image's fast "
            "non-local means weighs all of a patch alike; its total variation takes 30 steps of Chambolle's older "
            "method, ours 30 of Chambolle and Pock's, which get nearer; ART's minimises a smooth stand-in.",
        ],
        targets=targets,
    )


def _ours(unit: torch.Tensor) -> dict[str, Callable[[], object]]:
    kinds: dict[str, Denoiser] = {"median": Median()}
    kinds |= {name: kind(Span((0.0,), (1.0,))) for name, kind in KINDS.items() if issubclass(kind, Windowed)}

    def run(denoise: Denoiser) -> Callable[[], object]:
        def once() -> None:
            with torch.no_grad():
                denoise(unit)

        return once

    return {name: run(denoise) for name, denoise in kinds.items()}


def _scikit_image(planes: np.ndarray) -> dict[str, Callable[[], object]]:
    by = restoration
    return {
        "bilateral, scikit-image": lambda: [
            by.denoise_bilateral(plane, win_size=5, sigma_color=8 * LEVEL, sigma_spatial=1.2) for plane in planes
        ],
        "nonlocal_means, scikit-image": lambda: [
            by.denoise_nl_means(plane, patch_size=5, patch_distance=5, h=4 * LEVEL) for plane in planes
        ],
        "total_variation, scikit-image": lambda: [
            by.denoise_tv_chambolle(plane, weight=2 * LEVEL, eps=0, max_num_iter=30) for plane in planes
        ],
        "wavelet, scikit-image": lambda: [
            by.denoise_wavelet(plane, wavelet="db4", wavelet_levels=3) for plane in planes
        ],
    }  # fmt: skip


@contextmanager
def _peers(batch: np.ndarray, threads: int) -> Iterator[dict[str, Callable[[], object]]]:
    """What asks the peers' process for each of their filters; nothing where they are not installed."""
    if not (PEERS / ".installed").exists():
        print("OpenCV, kornia and ART are left out: make .cache/peers/denoisers/.installed", file=sys.stderr)
        yield {}
        return
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "batch.npy", batch)
        script = Path(__file__).with_name("peer_denoisers.py")
        command = [str(PEERS / "bin" / "python"), str(script), f"{folder}/batch.npy", str(threads)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            asked, answers = process.stdin, process.stdout
            assert asked is not None
            assert answers is not None

            def ask(name: str) -> Callable[[], object]:
                def once() -> None:
                    print(name, file=asked, flush=True)
                    answers.readline()

                return once

            yield {name: ask(name) for name in json.loads(answers.readline())}
            asked.close()


if __name__ == "__main__":
    hand_back(measure())
