"""Runs the attacks of other libraries on a small network, in their own environment: a job in, their images out.

    python attack_peers.py JOB.npz OUT.npz

The job holds `weights_0` … (the network's parameters in order), `images` (N, 1, rows, columns) 0 to 1, `labels` (N,),
and `cases`, a JSON list of [name, options]; out come `images_0` … and `seconds`, in the order of the cases.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import foolbox
import numpy as np
import torch
import torchattacks
from art.attacks.evasion import HopSkipJump, SquareAttack
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn


class Centred(nn.Module):
    """The first layer of the network."""

    def forward(self, x: Tensor) -> Tensor:
        """Images about 0; ART sends some in double precision."""
        return (x.float() - 0.4) * 8


def classifier(weights: list[np.ndarray]) -> nn.Module:
    """The network of tests/lab/conftest.py, with its parameters."""
    shapes = [each.shape for each in weights]
    first, second = nn.Conv2d(1, shapes[0][0], shapes[0][2], 2), nn.Conv2d(shapes[0][0], shapes[2][0], shapes[2][2], 2)
    body = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
    network = nn.Sequential(Centred(), body, nn.Flatten(), nn.Linear(shapes[4][1], shapes[4][0]))
    for parameter, values in zip(network.parameters(), weights, strict=True):
        parameter.data = torch.from_numpy(values)
    return network.eval().requires_grad_(requires_grad=False)


class Five(nn.Module):
    """The network with two classes more, which it never answers: some peers need four classes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Five logits for three."""
        logits = self.network(x)
        return torch.cat([logits, logits.new_full((len(logits), 2), -20.0)], dim=1)


def by_torchattacks(name: str, options: dict[str, Any]) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    five = options.get("n_classes") == 5

    def run(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        found: Tensor = getattr(torchattacks, name)(Five(network) if five else network, **options)(images, labels)
        return found

    return run


def by_foolbox(name: str, options: dict[str, Any]) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    options = dict(options)
    eps = options.pop("eps", None)

    def run(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        model = foolbox.PyTorchModel(network, bounds=(0, 1))
        _, clipped, _ = getattr(foolbox.attacks, name)(**options)(model, images, labels, epsilons=eps)
        found: Tensor = clipped
        return found

    return run


def by_art(name: str, options: dict[str, Any]) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    kind = {"HopSkipJump": HopSkipJump, "SquareAttack": SquareAttack}[name]

    def run(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        wrapped = PyTorchClassifier(
            network, nn.CrossEntropyLoss(), tuple(images.shape[1:]), 3, clip_values=(0.0, 1.0), device_type="cpu"
        )
        return torch.from_numpy(kind(wrapped, **options).generate(images.numpy(), labels.numpy()))

    return run


LIBRARIES = {"torchattacks": by_torchattacks, "foolbox": by_foolbox, "art": by_art}


def main() -> None:
    """Do the job."""
    torch.set_num_threads(int(sys.argv[3]) if len(sys.argv) > 3 else 1)
    job = np.load(sys.argv[1])
    network = classifier([job[name] for name in sorted(each for each in job.files if each.startswith("weights_"))])
    images, labels = torch.from_numpy(job["images"]), torch.from_numpy(job["labels"])
    found: dict[str, Any] = {}
    seconds = []
    for k, (name, options) in enumerate(json.loads(str(job["cases"]))):
        torch.manual_seed(0)
        np.random.seed(0)
        library, attack = name.split(".")
        started = perf_counter()
        found[f"images_{k}"] = LIBRARIES[library](attack, options)(network, images, labels).detach().numpy()
        seconds.append(perf_counter() - started)
    np.savez(sys.argv[2], seconds=np.array(seconds), **found)


if __name__ == "__main__":
    main()
