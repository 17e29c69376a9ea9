"""Small networks trained in a second, and the drawn images that they read: what attacks are tested on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from detectors import registry
from detectors.methods.twins import Hardening
from gateway.profile import Profile
from lab import data, fitting
from lab.attacks.attack import Target
from lab.learning import Recipe
from lab.training import export, train_classifier
from signing.envelope import create_key, load_private_key

SIZE = 24


@dataclass(frozen=True, slots=True)
class Trained:
    """A trained model behind 8-bit grey levels, and images that it reads correctly."""

    target: Target
    images: Tensor
    labels: Tensor
    network: nn.Module


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """8-bit images of a faint disc, square or bar on noise; their classes; and masks of the figure."""
    draws = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=draws)
    centre = torch.rand(count, 2, 1, 1, generator=draws) * 8 + 8
    places = torch.arange(SIZE).float()
    down, across = places[None, :, None] - centre[:, 0], places[None, None, :] - centre[:, 1]
    figures = torch.stack(
        [
            down.square() + across.square() < 20,
            (down.abs() < 4) & (across.abs() < 4),
            (down.abs() < 2.5) & (across.abs() < 20),
        ],
        dim=1,
    )
    masks = figures[torch.arange(count), labels]
    noise = torch.randn(count, SIZE, SIZE, generator=draws)
    images = (100 + 20 * masks + 8 * noise).round().clamp(0, 255)
    return images[:, None], labels, masks.long()


def profile_of(task: str) -> Profile:
    return Profile.from_toml(
        f'name = "figures"\nversion = "1"\ntask = "{task}"\nclasses = ["disc", "square", "bar"]\n'
        f'[input]\nname = "x"\nlayout = "NCHW"\nchannels = 1\nsize = [{SIZE}, {SIZE}]\nrange = [0.0, 1.0]\n'.encode()
    )


def trained(network: nn.Module, target: Target, images: Tensor, labels: Tensor, steps: int = 200) -> None:
    """A few dozen steps of Adam: enough for figures."""
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    draws = torch.Generator().manual_seed(0)
    for _ in range(steps):
        chosen = torch.randint(len(images), (32,), generator=draws)
        loss = target.task.loss(target.logits(images[chosen]), labels[chosen]).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval().requires_grad_(requires_grad=False)


def made(task: str, seed: int) -> Trained:
    images, labels, masks = drawn(600, seed=1)
    fresh, fresh_labels, fresh_masks = drawn(60, seed=2)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = Masks() if task == "segmentation" else classifier()
    if task == "segmentation":
        labels, fresh_labels = masks, fresh_masks
    if task == "multilabel":
        labels, fresh_labels = (functional.one_hot(each, 3) for each in (labels, fresh_labels))
    target = Target.of_uint8(network, profile_of(task))
    trained(network, target, images, labels, steps=80 if task == "segmentation" else 200)
    right = target.judged(fresh, fresh_labels, batch=60).margin > 0
    return Trained(target, fresh[right], fresh_labels[right], network)


class Masks(nn.Module):
    """A segmenter of three convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 8, 5, padding=2), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers((x - 0.4) * 8)
        return logits


def classifier() -> nn.Module:
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x - 0.4) * 8

    return nn.Sequential(
        Centred(),
        nn.Conv2d(1, 12, 5, 2),
        nn.ReLU(),
        nn.Conv2d(12, 24, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 3),
    )


@pytest.fixture(scope="session", autouse=True)
def small_networks_train_alike() -> Iterator[None]:
    """On one thread: the same numbers wherever there are more, and sooner."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def they_go_on_training_alike(small_networks_train_alike: None) -> Iterator[None]:
    """A command that is run in this process may have asked for more threads."""
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def figures() -> Trained:
    """Three classes."""
    return made("multiclass", seed=0)


@pytest.fixture(scope="session")
def more_figures() -> Tensor:
    """400 of the same images, (400, 1, 24, 24), that no network was trained on."""
    return drawn(400, seed=3)[0]


@pytest.fixture(scope="session")
def other_figures() -> Trained:
    """The same task learnt from another start: an attacker's surrogate."""
    return made("multiclass", seed=5)


@pytest.fixture(scope="session")
def findings() -> Trained:
    """Three findings, each there or not."""
    return made("multilabel", seed=0)


@pytest.fixture(scope="session")
def outlines() -> Trained:
    """A mask of the figure."""
    return made("segmentation", seed=0)


PROFILE = b"""
name = "blobs"
version = "1"
task = "multiclass"
classes = ["plain", "striped"]
[input]
name = "image"
layout = "NCHW"
channels = 1
size = [32, 32]
range = [-1.0, 1.0]
"""
QUICK = (Hardening(0.5, 6.0, 72, 2e-3, batch=16), Hardening(1.0, 6.0, 72, 4e-3, batch=16))


def blobs(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Grey images with a spot on noise, every second of them faintly striped, and which are."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    labels = np.arange(count) % 2
    images = np.empty((count, 32, 32), np.uint8)
    for k, label in enumerate(labels):
        y, x, size = *rng.uniform(8, 24, 2), rng.uniform(4, 8)
        spot = 60 * np.exp(-((np.hypot(rows - y, columns - x) / size) ** 2))
        stripes = label * 14 * np.sin(2 * np.pi * (rows + rng.uniform(0, 4)) / 4)
        images[k] = np.clip(80 + spot + stripes + rng.normal(0, 4, (32, 32)), 0, 255)
    return images, labels.astype(np.int64)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, its profile, data and a key."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "profile.toml").write_bytes(PROFILE)
    arrays: dict[str, NDArray[np.generic]] = {"class_names": np.array(["plain", "striped"])}
    for place, (split, count) in enumerate({"train": 240, "val": 300, "test": 60}.items()):
        images, labels = blobs(count, seed=place)
        arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        arrays |= {f"{split}_groups": np.array([f"{split}{k // 2}" for k in range(count)])}
        arrays |= {f"{split}_ids": np.array([f"{split}-{k}" for k in range(count)])}
    np.savez(folder / "data.npz", **arrays)
    profile = Profile.load(folder / "profile.toml")
    train = data.load(folder / "data.npz", profile).train
    recipe = Recipe(widths=(8, 16), blocks=(1, 1), strides=(2, 2), epochs=16, batch=16)
    model = train_classifier(train.images, train.labels, classes=2, recipe=recipe, watch=lambda _epoch, _loss: None)
    (folder / "model.onnx").write_bytes(export(model, profile))
    create_key(folder / "key.pem")
    return folder


@pytest.fixture(scope="session")
def profile(site: Path) -> Profile:
    """That of the site's model."""
    return Profile.load(site / "profile.toml")


@pytest.fixture(scope="session")
def parts(site: Path, profile: Profile) -> fitting.Parts:
    """The site's scans by use."""
    return fitting.Parts.of(data.load(site / "data.npz", profile), seed=0)


@pytest.fixture(scope="session")
def fitted(site: Path, profile: Profile, parts: fitting.Parts) -> fitting.Fitted:
    """What a quick fit of the site leaves in `out`."""
    key: Ed25519PrivateKey = load_private_key(site / "key.pem")
    model = (site / "model.onnx").read_bytes()
    asked = ("wavelet", "dncnn")
    methods = (*registry.DEFAULT, "mahalanobis")
    return fitting.fit(
        model, profile, parts, site / "out",
        fpr=0.01, key=key, seed=0, methods=methods, recipes=QUICK, denoisers=asked,
    )  # fmt: skip
