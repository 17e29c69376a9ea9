"""Measures every denoiser on the bundled model and drawn slices; writes docs/results-denoisers.md: `make denoisers`."""

import hashlib
import os
import platform
from pathlib import Path

import click
import torch

from lab import phantoms
from lab.denoising import EVERY, Effect, bench, make, measure, table
from lab.phantom_detectors import TEST_SKIP, split_of
from lab.progress import progress

REPORT = Path("docs/results-denoisers.md")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=REPORT, show_default=True)
@click.option("--fit", "n_fit", default=800, show_default=True, help="slices that networks learn from")
@click.option("--test", "n_test", default=400, show_default=True, help="slices that are read")
@click.option("--attacked", default=100, show_default=True, help="correctly read slices to attack")
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=0, show_default=True, help="processes that draw; 0: one a core")
@click.option("--threads", default=0, show_default=True, help="threads that train and measure; 0: as torch chooses")
def main(*, out: Path, n_fit: int, n_test: int, attacked: int, seed: int, workers: int, threads: int) -> None:
    """Train and measure, and write the report."""
    if threads:
        torch.set_num_threads(threads)
    profile, model = phantoms.profile(), (phantoms.ASSETS / "model.onnx").read_bytes()
    train = split_of(phantoms.seeds("fit", n_fit), profile, workers)
    test = split_of(phantoms.seeds("test", n_test, skip=TEST_SKIP), profile, workers)
    with progress() as watch:
        place = bench(model, profile, torch.device("cpu"), seed, watch)
        effects = measure(place, make(place, EVERY, train.images), test, attacked=attacked)
    command = f"python -m lab.denoiser_results --fit {n_fit} --test {n_test} --attacked {attacked} --seed {seed}"
    out.write_text(report(effects, f"{command} --threads {torch.get_num_threads()}", model))


def report(effects: list[Effect], command: str, model: bytes) -> str:
    """The document; every figure comes from an effect."""
    columns, rows = table(effects)
    first = effects[0]
    attacked = next(iter(first.oblivious.values()))["n"]
    widest = max((each.clean["high"] - each.clean["low"]) / 2 for each in effects)
    loosest = max((each["high"] - each["low"]) / 2 for effect in effects for each in effect.informed.values())
    lines = [
        "# What each denoiser does to the bundled model's answers",
        "",
        f"Written by `{command}`",
        f"(`make denoisers`); do not edit. Python {platform.python_version()}, torch {torch.__version__},",
        f"{os.cpu_count()} cores, CPU. Model with SHA-256 {hashlib.sha256(model).hexdigest()[:16]}….",
        "",
        f"Drawn slices, not patients. Per cent of right answers: on {first.clean['n']} clean slices; on {attacked}",
        "that the model reads rightly, under projected gradient descent on the margin (10 steps, one start) at 1, 2, 4",
        "and 8 grey levels. `PGD`: the attacker does not know of the denoiser. `informed`: he attacks denoiser and",
        "model together, through the identity where the denoiser has no gradient. So few steps and slices show what",
        f"breaks, and not what holds. Half widths of the 95 % Clopper-Pearson intervals: at most {100 * widest:.1f}",
        f"points on clean slices, {100 * loosest:.1f} on attacked ones. `ms`: one image, in batches of 1 and of 16.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
