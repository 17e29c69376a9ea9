"""Trains, measures and writes the bundled phantom classifier: `python -m lab.phantom_classifier --help`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from rich.console import Console
from scipy.stats import binomtest
from torch import Tensor

from detectors.augmentation import Augmentation
from detectors.models.reference import Reference, conversion_difference
from gateway.profile import Profile
from lab import phantoms
from lab.attacks.attack import Target
from lab.attacks.pgd import PGD
from lab.learning import Recipe
from lab.training import Classifier, export, train_classifier

CURRICULUM = ((0.2, 3.0), (0.2, 1.7), (0.6, 1.0))
"""Shares of the training slices, and how conspicuous the nodules in them are: faint ones alone teach nothing at first.
The last is what every slice is like that the classifier will meet."""
RECIPE = Recipe(
    epochs=13,
    batch=32,
    smoothing=0.0,  # it makes a plateau on which an attack loses its way, and looks weaker than it is
    augmentation=Augmentation(rotation_deg=0.0, scale=0.0, shift=0.0, gain=0.0, mirror=True),
    pacing=(0.2, 0.2, 0.2, 0.2, 0.4, 0.4),
)
SELECTION = 2_000
"""Seeds of `test` that the recipe was chosen on; what is reported comes from later ones."""
LEVELS = (1.0, 2.0, 4.0, 8.0)
"""Budgets of the attack, 8-bit grey levels of the window."""

console = Console(stderr=True)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=phantoms.ASSETS, show_default=True, help="folder")
@click.option("--cache", type=click.Path(path_type=Path), default=Path(".cache/phantoms"), show_default=True)
@click.option("--train", "n_train", default=16_000, show_default=True, help="slices to train on")
@click.option("--test", "n_test", default=1_000, show_default=True, help="unseen slices to measure accuracy on")
@click.option("--attacked", default=150, show_default=True, help="correctly read unseen slices to attack")
@click.option("--seed", default=1, show_default=True, help="of the training")
@click.option("--workers", default=0, show_default=True, help="processes that draw; 0: one a core")
@click.option("--threads", default=0, show_default=True, help="threads that train; 0: as torch chooses")
def main(
    *, out: Path, cache: Path, n_train: int, n_test: int, attacked: int, seed: int, workers: int, threads: int
) -> None:
    """Draw phantoms, train the classifier on them, attack it, and write model.onnx and model-card.md.

    Needs some minutes and about 1 GB of memory; drawn slices are kept in the cache.
    """
    if threads:
        torch.set_num_threads(threads)
    profile = Profile.load(out / "profile.toml")
    images, labels = lessons(n_train, profile, cache, workers)  # (1) draw
    cache.mkdir(parents=True, exist_ok=True)
    model = train_classifier(  # (2) train
        images, labels, classes=2, recipe=RECIPE, seed=seed, checkpoint=cache / "training.state"
    )
    written = export(model, profile)  # (3) export
    (out / "model.onnx").write_bytes(written)
    found = measure(written, profile, n_test=n_test, attacked=attacked, cache=cache, workers=workers)  # (4) measure
    command = f"python -m lab.phantom_classifier --train {n_train} --test {n_test} --attacked {attacked} --seed {seed}"
    (out / "model-card.md").write_text(card(found, model, written, command, n_train))  # (5) tell
    console.print(f"accuracy {found.accuracy}; misled at 2 levels {found.misled[2.0]}")


@dataclass(frozen=True, slots=True)
class Share:
    """A count out of a count, with its exact interval."""

    count: int
    of: int

    def __str__(self) -> str:
        interval = binomtest(self.count, self.of).proportion_ci(confidence_level=0.95, method="exact")
        low, high = 100 * interval.low, 100 * interval.high
        return f"{100 * self.count / self.of:.1f} % ({self.count}/{self.of}, 95 % {low:.1f}-{high:.1f})"


@dataclass(frozen=True, slots=True)
class Measured:
    """What the exported file does on unseen slices."""

    accuracy: Share
    by_class: tuple[Share, Share]
    misled: dict[float, Share]
    """By budget in grey levels: correct answers that the attack turned."""
    conversion: float
    """Largest difference of a logit between the file under onnxruntime and the differentiable model."""


def measure(written: bytes, profile: Profile, *, n_test: int, attacked: int, cache: Path, workers: int) -> Measured:
    """Measure an exported classifier on the seeds of `test`, and attack what it reads correctly.

    Accuracy is that of the served file; the attack goes through the gateway's rendering and the differentiable model
    that is built from the same file.
    """
    of = phantoms.seeds("test", n_test, skip=SELECTION)
    images, labels = drawn(of, profile, cache, workers), torch.from_numpy(phantoms.labels(of))
    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    answers = [session.run(None, {profile.input.name: part.numpy()})[0] for part in torch.split(images, 64)]
    right = torch.from_numpy(np.concatenate(answers)).argmax(dim=1) == labels
    by_class = tuple(Share(int(right[labels == k].sum()), int((labels == k).sum())) for k in range(2))

    reference = Reference.from_onnx(written).eval()
    target = Target.of_dicom(reference, phantoms.RENDERING, profile)
    chosen = torch.nonzero(right)[:attacked, 0]
    frames = np.stack([phantoms.draw(of[int(index)]).pixels for index in chosen])
    stored = torch.from_numpy(frames.astype(np.float32))[:, None]
    misled = {}
    for level in LEVELS:
        success = attack(level)(target, stored, labels[chosen]).success
        misled[level] = Share(int(success.sum()), len(success))
        console.print(f"{level:g} levels: misled {misled[level]}")
    difference = conversion_difference(reference, written, images[:64])
    return Measured(Share(int(right.sum()), len(right)), (by_class[0], by_class[1]), misled, difference)


def attack(level: float) -> PGD:
    """Return the attack that the card tells of, at a budget in grey levels."""
    return PGD(eps=level, steps=40, restarts=2)


def lessons(count: int, profile: Profile, cache: Path, workers: int) -> tuple[Tensor, Tensor]:
    """Return (N, channels, height, width) slices to train on, plain ones first, and their labels (N,)."""
    images, labels, skip = [], [], 0
    for share, conspicuity in CURRICULUM:
        of = phantoms.seeds("train", round(share * count), skip=skip)
        images.append(drawn(of, profile, cache, workers, conspicuity=conspicuity))
        labels.append(torch.from_numpy(phantoms.labels(of)))
        skip += len(of)
    return torch.cat(images), torch.cat(labels)


def drawn(of: range, profile: Profile, cache: Path, workers: int, *, conspicuity: float = 1.0) -> Tensor:
    """Return (N, channels, height, width) rendered slices, drawn now or taken from the cache.

    The cache is kept in blocks, so that an interrupted drawing goes on, and is bound to the code that draws and
    renders: another version of it draws anew.
    """
    cache.mkdir(parents=True, exist_ok=True)
    sources = _sources()
    blocks = []
    for first in range(0, len(of), BLOCK):
        seeds = of[first : first + BLOCK]
        told = f"{seeds.start} {len(seeds)} {conspicuity:g} {profile.sha256} {sources}"
        name = hashlib.sha256(told.encode()).hexdigest()[:24]
        path = cache / f"{name}.npy"
        if not path.exists():
            with console.status(f"drawing slices {first} to {first + len(seeds)} of {len(of)}"):
                images = phantoms.rendered(seeds, profile, workers=workers, conspicuity=conspicuity)
            part = path.with_suffix(".part.npy")
            np.save(part, images.numpy().astype(np.float16))  # an eighth of a grey level at worst
            part.replace(path)
        block: NDArray[np.float16] = np.load(path, allow_pickle=False)
        blocks.append(torch.from_numpy(block.astype(np.float32)))
    return torch.cat(blocks)


BLOCK = 1000
"""Slices in one file of the cache."""


def _sources() -> str:
    """Return the digest of the code that draws and renders."""
    here = Path(__file__).parent
    files = [*sorted((here / "drawing").glob("*.py")), here.parent / "gateway" / "pixels" / "imaging.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def card(found: Measured, model: Classifier, written: bytes, command: str, n_train: int) -> str:
    """Return the model card: what it is, how it was made, what it does, and what it is not for."""
    weights = sum(parameter.numel() for parameter in model.parameters())
    rows = "\n".join(f"| {level:g} | {share} |" for level, share in found.misled.items())
    train, test = phantoms.SPLITS["train"], phantoms.SPLITS["test"]
    return f"""# The phantom classifier

Tells procedurally drawn chest CT slices with a lung nodule from those without one. It exists so that the gateway can
be shown and tested with a real model and no patient's data. **It is not for patients**: it has never seen one.

| | |
|---|---|
| file | `model.onnx`, {len(written):,} bytes, SHA-256 `{hashlib.sha256(written).hexdigest()}` |
| network | residual, widths {", ".join(map(str, RECIPE.widths))}, {weights:,} weights, no defence of any kind |
| input | `profile.toml`, through `gateway.pixels.imaging.render` |
| trained on | {n_train:,} slices, seeds {train.start:,} to {train.start + n_train - 1:,} |
| training | {RECIPE.epochs} epochs, AdamW, one cycle to {RECIPE.peak_rate:g}, plain slices first |
| measured on | slices it has not seen, from seed {test.start + SELECTION:,} |
| made by | `{command}` |

## What it does on unseen slices

Accuracy {found.accuracy}: without a nodule {found.by_class[0]}, with one {found.by_class[1]}.
The served file and the differentiable model differ by at most {found.conversion:.1e} in a logit.

## How easily it is misled

`{attack(2.0)!r}` and its like, on correctly read slices. The budget is in 8-bit grey levels
of the window, applied to the stored values of the 512x512 slice, which are rounded before the answer counts. Shares
with exact 95 % intervals:

| grey levels | answers turned |
|---|---|
{rows}

That is how undefended networks behave (Goodfellow et al. 2015, arXiv:1412.6572), and why there is a gateway.
"""


if __name__ == "__main__":
    main()
