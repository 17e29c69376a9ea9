"""Beside torchattacks, Foolbox and ART: at the same budget and steps no peer misleads more, or comes nearer."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lab import attacks
from lab.attacks.attack import Attack, Target

ROOT = Path(__file__).parents[3]
LEVELS = 2.0
EPS = LEVELS / 255
LENGTH = 24 * EPS
"""L2 budget of the peers: two grey levels as the root of the mean square of 24 x 24 pixels."""

BOUNDED: list[tuple[str, dict[str, Any], Attack]] = [
    ("torchattacks.FGSM", {"eps": EPS}, attacks.named("fgsm", eps=LEVELS)),
    ("torchattacks.BIM", {"eps": EPS, "alpha": EPS / 10, "steps": 20}, attacks.named("bim", eps=LEVELS)),
    ("torchattacks.PGD", {"eps": EPS, "alpha": EPS / 10, "steps": 20}, attacks.named("pgd", eps=LEVELS)),
    ("foolbox.LinfPGD", {"eps": EPS, "steps": 20}, attacks.named("pgd", eps=LEVELS)),
    (
        "torchattacks.PGDL2", {"eps": LENGTH, "alpha": LENGTH / 10, "steps": 20},
        attacks.named("pgd", eps=LEVELS, norm="l2"),
    ),
    ("foolbox.L2PGD", {"eps": LENGTH, "steps": 20}, attacks.named("pgd", eps=LEVELS, norm="l2")),
    ("torchattacks.APGD", {"eps": EPS, "steps": 30}, attacks.named("apgd", eps=LEVELS, steps=30)),
    (
        "torchattacks.APGDT", {"eps": EPS, "steps": 30, "n_classes": 5},
        attacks.named("apgd", eps=LEVELS, steps=30, loss="dlr", targets=2),
    ),
    ("torchattacks.FAB", {"eps": EPS, "steps": 30, "n_classes": 3}, attacks.named("fab", eps=LEVELS, steps=40)),
    ("torchattacks.Square", {"eps": EPS, "n_queries": 500}, attacks.named("square", eps=LEVELS, queries=500)),
    ("art.SquareAttack", {"eps": EPS, "max_iter": 500}, attacks.named("square", eps=LEVELS, queries=500)),
    (
        "torchattacks.AutoAttack", {"eps": EPS, "n_classes": 5},
        attacks.named("autoattack", eps=LEVELS, queries=5000),
    ),
]  # fmt: skip
"""What peers run, and what we run beside it; a step of their FAB costs one pass more, so ours takes as many passes."""

NEAREST: list[tuple[str, dict[str, Any], Attack]] = [
    ("torchattacks.CW", {"c": 1, "steps": 500, "lr": 0.01}, attacks.named("cw", steps=100, searches=5)),
    (
        "foolbox.L2CarliniWagnerAttack", {"binary_search_steps": 5, "steps": 100},
        attacks.named("cw", steps=100, searches=5),
    ),
    ("torchattacks.DeepFool", {"steps": 50}, attacks.named("deepfool")),
    ("foolbox.L2DeepFoolAttack", {"steps": 50}, attacks.named("deepfool")),
    (
        "foolbox.HopSkipJumpAttack", {"steps": 15, "initial_gradient_eval_steps": 100},
        attacks.named("hopskipjump", steps=15),
    ),
    (
        "art.HopSkipJump", {"max_iter": 15, "max_eval": 400, "init_eval": 100, "verbose": False},
        attacks.named("hopskipjump", steps=15),
    ),
]  # fmt: skip


@pytest.fixture(scope="session")
def theirs(figures: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """By peer, the images that it made: one process for all, since their imports take longest."""
    python = ROOT / ".cache" / "peers" / "attacks" / "bin" / "python"
    if not python.exists():
        pytest.skip("needs attack peers: make test-peers")
    folder = tmp_path_factory.mktemp("peers")
    cases = [(name, options) for name, options, _ in (*BOUNDED, *NEAREST)]
    weights = {f"weights_{k}": each.numpy() for k, each in enumerate(figures.network.parameters())}
    np.savez(
        folder / "job.npz", images=figures.images.numpy() / np.float32(255), labels=figures.labels.numpy(),
        cases=np.array(json.dumps(cases)), **weights,
    )  # fmt: skip
    script = ROOT / "tests" / "peers" / "attack_peers.py"
    command = [str(python), str(script), str(folder / "job.npz"), str(folder / "out.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    found = np.load(folder / "out.npz")
    return {name: torch.from_numpy(found[f"images_{k}"]).float() for k, (name, _) in enumerate(cases)}


def fine(target: Target) -> Target:
    """The same model behind 16 bits, where rounding hardly matters: peers do not round."""
    return Target(target.model, lambda x: x / 65535, 257.0, 0.0, 65535.0, target.task)


@pytest.mark.peers
@pytest.mark.parametrize(("name", "_options", "attack"), BOUNDED, ids=[f"{name}" for name, *_ in BOUNDED])
def test_no_peer_misleads_more(
    name: str, _options: dict[str, Any], attack: Attack, theirs: dict[str, Tensor], figures: Any
) -> None:
    """Theirs as floating-point images that no file holds, ours as they are stored in 16 bits."""
    images, labels = figures.images * 257, figures.labels
    ours = attack(fine(figures.target), images, labels).success
    misled = figures.network(theirs[name]).argmax(dim=1) != labels

    assert int(ours.sum()) >= int(misled.sum())


@pytest.mark.peers
@pytest.mark.parametrize(("name", "_options", "attack"), NEAREST, ids=[f"{name}" for name, *_ in NEAREST])
def test_no_peer_comes_nearer(
    name: str, _options: dict[str, Any], attack: Attack, theirs: dict[str, Tensor], figures: Any
) -> None:
    """By the median length over all images, one that was not misled counting as infinitely far."""
    images, labels = figures.images * 257, figures.labels
    found = attack(fine(figures.target), images, labels)
    ours = torch.where(found.success, ((found.images - images) / 65535).flatten(1).norm(dim=1), torch.inf)
    misled = figures.network(theirs[name]).argmax(dim=1) != labels
    lengths = torch.where(misled, (theirs[name] - images / 65535).flatten(1).norm(dim=1), torch.inf)

    assert int(found.success.sum()) >= int(misled.sum())
    assert float(ours.median()) <= 1.02 * float(lengths.median())
