"""What the demo is played with: images, the model that reads them, and the detectors that guard it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gateway.pixels.imaging import Rendering
from gateway.profile import Profile
from gateway.testing import write_signing_key
from lab import phantoms
from lab.demo.written import to_dicom
from lab.fitting import Parts, fit
from lab.progress import progress
from lab.victims import victim

BUNDLED = phantoms.ASSETS
FPR = 0.01


@dataclass(frozen=True, slots=True)
class Specimen:
    """One image in its stored values, and how it becomes a file."""

    name: str
    stored: Tensor
    """(1, C, rows, columns) float32, whole numbers."""
    label: int
    as_dicom: Callable[[Tensor], bytes]
    """The file that holds such stored values in place of the specimen's own."""


@dataclass(frozen=True, slots=True)
class Material:
    """Images that neither the model nor its detectors have seen, and the files that a route is configured with."""

    title: str
    profile_file: Path
    model_file: Path
    detectors: Path
    artefact_key: Path
    """Public half of the key that the detectors' manifest is signed with."""
    rendering: Rendering
    specimen: Callable[[int], Specimen]
    """The specimen with a number, from 0."""
    count: int

    @property
    def profile(self) -> Profile:
        """What the model expects."""
        return Profile.load(self.profile_file)

    @property
    def guarantee(self) -> str:
        """`confident` or `marginal`: how firmly the detectors hold their false-positive rate."""
        return str(json.loads((self.detectors / "manifest.json").read_text())["guarantee"])


def drawn() -> Material:
    """The bundled material: CT slices drawn from seeds that are for showing only."""

    def specimen(index: int) -> Specimen:
        phantom = phantoms.draw(phantoms.seeds("demo", 1, skip=index)[0])
        stored = torch.from_numpy(phantom.pixels.astype(np.float32))[None, None]

        def as_dicom(values: Tensor) -> bytes:
            return phantoms.to_dicom(replace(phantom, pixels=values[0, 0].numpy().astype(np.uint16)))

        return Specimen(f"slice {phantom.seed}", stored, phantom.label, as_dicom)

    return Material(
        title="drawn CT slices (no patient ever was in this scanner)",
        profile_file=BUNDLED / "profile.toml",
        model_file=BUNDLED / "model.onnx",
        detectors=BUNDLED / "detectors",
        artefact_key=BUNDLED / "artefact.pub.pem",
        rendering=phantoms.RENDERING,
        specimen=specimen,
        count=len(phantoms.SPLITS["demo"]),
    )


def learned(npz: Path, directory: Path) -> Material:
    """Train a model on the images of an .npz file, fit detectors for it, and show with the file's test images.

    Raises:
        lab.data.DataError: the file is not of the layout of architecture 5.1.
        KeyError: it names no classes, or holds no test images.
    """
    trained = victim(npz, directory)
    profile, images = trained.profile, trained.images
    key = write_signing_key(directory / "artefact.pem")
    with progress() as watch:
        parts = Parts.of(images, seed=0)
        model = trained.model_file.read_bytes()
        fit(model, profile, parts, directory / "detectors", fpr=FPR, key=key, seed=0, watch=watch)
    test, low, high = images.test, *profile.input.range

    def specimen(index: int) -> Specimen:
        stored = ((test.images[index : index + 1] - low) / (high - low) * 255).round()

        def as_dicom(values: Tensor) -> bytes:
            return to_dicom(values[0].numpy().astype(np.uint8), name=f"{npz.stem}-{index}")

        return Specimen(f"{npz.stem} {test.ids[index]}", stored, int(test.labels[index]), as_dicom)

    return Material(
        title=f"images of {npz.name}",
        profile_file=trained.profile_file,
        model_file=trained.model_file,
        detectors=directory / "detectors",
        artefact_key=directory / "artefact.pub",
        rendering=Rendering(),
        specimen=specimen,
        count=len(test),
    )
