"""A model trained on the spot, without any defence, on the images of an .npz file: what demo and results attack."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gateway.profile import Profile
from lab.data import Dataset, channels_first, load
from lab.training import export, train_classifier

MODALITIES = {1: "CR", 3: "XC"}
"""By the number of channels: what such images are taken for, a radiograph or a photograph."""
MODEL = "model.onnx"
_PROFILE = """\
name = "{name}"
version = "1"
task = "multiclass"
classes = {classes}

[input]
name = "image"
layout = "NCHW"
channels = {channels}
size = [{rows}, {columns}]
range = [0.0, 1.0]

[output]
name = "logits"
activation = "softmax"

[match]
modality = ["{modality}"]
"""


@dataclass(frozen=True, slots=True)
class Victim:
    """A trained model on disk."""

    profile_file: Path
    model_file: Path
    images: Dataset

    @property
    def profile(self) -> Profile:
        """What the model expects."""
        return Profile.load(self.profile_file)


def victim(npz: Path, directory: Path, *, seed: int = 0) -> Victim:
    """Train a model on the `train` split; one that already lies in the directory is taken.

    Raises:
        lab.data.DataError: the file is not of the layout of architecture 5.1.
        KeyError: it names no classes, or holds no test images.
    """
    profile_file, model_file = described(npz, directory), directory / MODEL
    profile = Profile.load(profile_file)
    images = load(npz, profile)
    if not model_file.exists():
        model = train_classifier(images.train.images, images.train.labels, classes=len(profile.classes), seed=seed)
        model_file.write_bytes(export(model, profile))
    return Victim(profile_file, model_file, images)


def described(npz: Path, directory: Path) -> Path:
    """Write the profile of a model of these images as they are, and return its file.

    Raises:
        lab.data.DataError: they are no 8-bit images of one channel or three.
        KeyError: the file names no classes, or holds no test images.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with np.load(npz, allow_pickle=False) as file:
        _, channels, rows, columns = channels_first(file["test_images"], "test_images").shape
        classes = [str(name) for name in file["class_names"]]
    text = _PROFILE.format(
        name=npz.stem, classes=json.dumps(classes), channels=channels, rows=rows, columns=columns,
        modality=MODALITIES[channels],
    )  # fmt: skip
    profile_file = directory / "profile.toml"
    profile_file.write_text(text, encoding="utf-8")
    return profile_file
