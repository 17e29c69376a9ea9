"""Fits and signs the detectors of the bundled phantom classifier: `python -m lab.phantom_detectors --help`."""

import hashlib
from dataclasses import replace
from pathlib import Path

import click
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from detectors.methods.twins import COPIED, SMALL
from gateway.profile import Profile
from lab import phantoms
from lab.data import Split
from lab.fitting import Parts, fit
from lab.progress import progress

FPR = 0.01
RECIPES = (replace(COPIED, steps=240), replace(SMALL, steps=380))
"""Slices cost nothing to draw: they are many and not much alike, so that fewer steps do."""
PUBLIC_KEY = "artefact.pub.pem"
TEST_SKIP = 10_000
"""Seeds of `test` that the manifest's own figures are taken from lie beyond those of the published results."""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=phantoms.ASSETS, show_default=True, help="folder")
@click.option("--fit", "n_fit", default=3000, show_default=True, help="slices that twins, D and denoiser learn from")
@click.option("--a", "n_a", default=400, show_default=True, help="slices for the fusion and the tails")
@click.option("--b", "n_b", default=1200, show_default=True, help="slices for the conformal rule")
@click.option("--test", "n_test", default=200, show_default=True, help="slices for the manifest's own figures")
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=0, show_default=True, help="processes that draw; 0: one a core")
@click.option("--threads", default=0, show_default=True, help="threads that train; 0: as torch chooses")
def main(*, out: Path, n_fit: int, n_a: int, n_b: int, n_test: int, seed: int, workers: int, threads: int) -> None:
    """Draw phantoms, fit detectors on them, and write the artefact and the public half of the key that signed it.

    The private half is made for this one signature and kept nowhere: the artefact cannot be changed, only made anew.
    """
    if threads:
        torch.set_num_threads(threads)
    profile = Profile.load(out / "profile.toml")
    parts = _parts(profile, (n_fit, n_a, n_b, n_test), workers)
    key = Ed25519PrivateKey.generate()
    with progress() as watch:
        fit(
            (out / "model.onnx").read_bytes(),
            profile,
            parts,
            out / "detectors",
            fpr=FPR,
            key=key,
            seed=seed,
            recipes=RECIPES,
            watch=watch,
        )
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (out / PUBLIC_KEY).write_bytes(public)


def _parts(profile: Profile, counts: tuple[int, int, int, int], workers: int) -> Parts:
    """Slices by use, each from its own range of seeds."""
    uses = (("fit", 0), ("a", 0), ("b", 0), ("test", TEST_SKIP))
    splits = [
        split_of(phantoms.seeds(use, n, skip=skip), profile, workers)
        for (use, skip), n in zip(uses, counts, strict=True)
    ]
    told = hashlib.sha256()
    for split in splits:
        told.update(split.images.numpy().tobytes())
    return Parts(splits[0], splits[1], splits[2], splits[3], sha256=told.hexdigest())


def split_of(seeds: range, profile: Profile, workers: int) -> Split:
    """The slices of these seeds as the model sees them; each is a patient of its own."""
    names = tuple(str(seed) for seed in seeds)
    labels = torch.from_numpy(phantoms.labels(seeds))
    return Split(phantoms.rendered(seeds, profile, workers=workers), labels, names, names)


if __name__ == "__main__":
    main()
