"""What attacks cost beside the bare passes through the model that they make, and beside other libraries."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lab import attacks
from lab.attacks.attack import Attack, Target
from report import ROOT, Table, hand_back, milliseconds, ratio, rounds
from report import Target as Aim
from untrained import RESNET18, ResNet

IMAGES, SIZE, EPS = 16, 64, 2.0
ROUNDS = 3
WANTED = 1.15
PEERS = ROOT / ".cache" / "peers" / "attacks" / "bin" / "python"
BESIDE_FLOOR: tuple[tuple[str, dict[str, Any]], ...] = (
    ("pgd", {"steps": 20}),
    ("pgd", {"steps": 20, "norm": "l2"}),
    ("apgd", {"steps": 20}),
    ("fab", {"steps": 20}),
    ("low-frequency-pgd", {"steps": 20}),
    ("square", {"queries": 60}),
    ("nes", {"steps": 2}),
    ("hopskipjump", {"steps": 1}),
)
IN_FULL, IN_FULL_NAME = 4, "ResNet-18, 128"
"""Images in front of a network of full size."""
LEVEL = 1 / 255
BESIDE_PEERS: tuple[tuple[str, dict[str, Any], str, dict[str, Any], float], ...] = (
    ("pgd", {"steps": 20}, "torchattacks.PGD", {"eps": EPS * LEVEL, "alpha": 0.3 * LEVEL, "steps": 20}, 1.0),
    ("pgd", {"steps": 20}, "foolbox.LinfPGD", {"eps": EPS * LEVEL, "steps": 20}, 1.0),
    ("autoattack", {}, "torchattacks.AutoAttack", {"eps": EPS * LEVEL, "n_classes": 5}, 1.0),
    ("square", {"queries": 200}, "art.SquareAttack", {"eps": EPS * LEVEL, "max_iter": 200, "verbose": False}, 5.0),
    (
        "hopskipjump", {"steps": 4},
        "art.HopSkipJump", {"max_iter": 4, "max_eval": 200, "init_eval": 100, "verbose": False}, 5.0,
    ),
)  # fmt: skip
"""Our attack, a peer's at the same budget and steps, and how many times as fast ours is to be."""


def measure() -> Table:
    """Time attacks beside their floors, in turns, then beside peers, one process after the other."""
    torch.set_num_threads(1)
    network, images, labels = trained()
    target = Target(network, lambda x: x / 255, 1.0, 0.0, 255.0)
    rows, targets = [], []
    subjects = [("tiny", network, images, labels, BESIDE_FLOOR), (IN_FULL_NAME, *in_full(), BESIDE_FLOOR[:-2])]
    for subject, model, shown, read, chosen in subjects:
        before = replace(target, model=model)
        for name, options in chosen:
            attack = attacks.named(name, eps=EPS, **options)
            floor = replayed(model, passes(attack, before, shown, read), shown)
            seconds = rounds({"ours": _run(attack, before, shown, read), "floor": floor}, ROUNDS)
            times = ratio(seconds["ours"], seconds["floor"])
            what = f"{subject}: {name} {_said(options)}"
            figures = [milliseconds(seconds["ours"]), milliseconds(seconds["floor"])]
            rows.append([what, "its passes, bare", *figures, f"{times:.2f}"])
            targets.append(Aim(f"{what}, by its floor", f"at most {WANTED}", f"{times:.2f}", times <= WANTED))
    if PEERS.exists():
        found = by_peers(network, images, labels)
        for (name, options, peer, _, wanted), theirs in zip(BESIDE_PEERS, found, strict=True):
            eps = {} if name == "hopskipjump" else {"eps": EPS}
            ours = min(_timed(attacks.named(name, **eps, **options), target, images, labels) for _ in range(2))
            rows.append(
                [f"{name} {_said(options)}", peer, f"{1000 * ours:.3g}", f"{1000 * theirs:.3g}", f"{ours / theirs:.2f}"]
            )
            faster = f"{theirs / ours:.1f} times"
            targets.append(Aim(f"{name} beside {peer}", f"{wanted:g} times as fast", faster, theirs >= wanted * ours))
    return Table(
        title="Attacks, CPU, one thread",
        columns=["attack", "beside", "ms", "of that, ms", "by it"],
        rows=rows,
        notes=[
            f"*Tiny* is a network of two convolutions in front of {IMAGES} images of {SIZE} x {SIZE} pixels, on which "
            f"what an attack does beside its passes shows; peers stand beside it. *{IN_FULL_NAME}* is one of full "
            f"size, untrained, in front of {IN_FULL} images of 128 x 128; its answer is fixed, so no image is done.",
            "The floor is the passes that the attack makes through the model, with the same number of images and a "
            "backward pass where it has one, and nothing else. Peers run in an environment and a process of their own "
            "(`make test-peers` makes it), with their own torch; below 1 ours is faster. Images that are done leave "
            "our batches.",
        ],
        targets=targets,
    )


def trained() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network that tells in which third of a noisy image it is brighter, and images that it reads correctly."""
    torch.manual_seed(0)
    body = (nn.Conv2d(1, 32, 5, 2), nn.ReLU(), nn.Conv2d(32, 64, 3, 2), nn.ReLU(), nn.Flatten())
    network = nn.Sequential(Centred(), *body, nn.Linear(64 * 14 * 14, 3))
    optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(60):
        images, labels = drawn(32)
        loss = functional.cross_entropy(network(images / 255), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval().requires_grad_(requires_grad=False)
    images, labels = drawn(4 * IMAGES)
    right = network(images / 255).argmax(dim=1) == labels
    return network, images[right][:IMAGES].contiguous(), labels[right][:IMAGES]


def in_full() -> tuple[nn.Module, Tensor, Tensor]:
    """A network of the size of a diagnostic one, images, and what it reads in them however they are changed."""
    torch.manual_seed(0)
    network = ResNet(RESNET18).eval().requires_grad_(requires_grad=False)
    network.head.bias[0] = 1e4
    images = torch.randint(256, (IN_FULL, 1, RESNET18.size, RESNET18.size)).float()
    return network, images, torch.zeros(IN_FULL, dtype=torch.int64)


def drawn(count: int) -> tuple[Tensor, Tensor]:
    """8-bit images with a brighter third, and which it is."""
    labels = torch.randint(3, (count,))
    third = torch.arange(SIZE).mul(3).div(SIZE, rounding_mode="floor")
    bright = 3.0 * (third == labels[:, None]).view(count, 1, 1, SIZE)
    return (100 + bright + 8 * torch.randn(count, 1, SIZE, SIZE)).round().clamp(0, 255), labels


class Centred(nn.Module):
    """As tests/peers/attack_peers.py has it."""

    def forward(self, x: Tensor) -> Tensor:
        """Images about 0."""
        return (x - 0.4) * 8


def passes(attack: Attack, target: Target, images: Tensor, labels: Tensor) -> list[tuple[int, bool]]:
    """Every pass that an attack makes: how many images, and whether a gradient follows."""
    made: list[tuple[int, bool]] = []

    def counting(x: Tensor) -> Tensor:
        made.append((len(x), x.requires_grad))
        logits: Tensor = target.model(x)
        return logits

    attack(replace(target, model=counting), images, labels)
    return made


def replayed(network: nn.Module, made: list[tuple[int, bool]], images: Tensor) -> Callable[[], None]:
    """The same passes with images of that size, and nothing else."""
    most = torch.rand(max(count for count, _ in made), *images.shape[1:])

    def run() -> None:
        for count, backward in made:
            if backward:
                leaf = most[:count].detach().requires_grad_(True)
                torch.autograd.grad(network(leaf).sum(), leaf)
            else:
                with torch.no_grad():
                    network(most[:count])

    return run


def by_peers(network: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """Seconds of each peer's attack."""
    cases = [(peer, options) for _, _, peer, options, _ in BESIDE_PEERS]
    weights = {f"weights_{k}": each.numpy() for k, each in enumerate(network.parameters())}
    with tempfile.TemporaryDirectory() as place:
        job, out = Path(place) / "job.npz", Path(place) / "out.npz"
        unit = images.numpy() / np.float32(255)
        np.savez(job, images=unit, labels=labels.numpy(), cases=np.array(json.dumps(cases)), **weights)
        subprocess.run([str(PEERS), str(ROOT / "tests" / "peers" / "attack_peers.py"), str(job), str(out)], check=True)
        return [float(each) for each in np.load(out)["seconds"]]


def _run(attack: Attack, target: Target, images: Tensor, labels: Tensor) -> Callable[[], object]:
    return lambda: attack(target, images, labels)


def _timed(attack: Attack, target: Target, images: Tensor, labels: Tensor) -> float:
    started = perf_counter()
    attack(target, images, labels)
    return perf_counter() - started


def _said(options: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in options.items())


if __name__ == "__main__":
    hand_back(measure())
