"""What an attacker may bring beside his budget: a model of his own, scans of his own, a look inside the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from detectors.probe import Probe
from gateway.profile import Profile
from lab.attacks.attack import Target
from lab.attacks.features import Cluster, Features, clusters_of
from lab.data import DataError, StoredScans, load, stored
from lab.evaluation.surrogate import surrogate
from lab.progress import Watch

Model = Callable[[Tensor], Tensor]
OWN_MAX = 256
"""Scans of his own that an attacker learns from: bounds the time, and more change little."""


@dataclass(frozen=True, slots=True)
class Means:
    """Each is made when an attack first asks for it, and once."""

    task: str
    """What the model decides, as its profile says."""
    own_model: Callable[[], Model]
    """A small network taught by the protected model's answers."""
    own_scans: Callable[[], StoredScans]
    """Training scans, drawn by the seed."""
    inside: Callable[[], tuple[Features, str]]
    """The protected model's answers with its features, and the layer before pooling."""
    clusters: Callable[[], dict[str, Cluster]]
    """How his own scans look inside the model, by layer."""

    @classmethod
    def of(
        cls,
        probe: Probe,
        target: Target,
        profile: Profile,
        data: Path,
        seed: int,
        device: torch.device,
        watch: Watch,
    ) -> Means:
        """Means of one who has the training split of an .npz file, and the protected model."""

        @cache
        def own_model() -> Model:
            return surrogate(probe, load(data, profile).train.images, seed=seed + 50, watch=watch)

        @cache
        def own_scans() -> StoredScans:
            scans = stored(data, "train", profile)
            drawn = torch.randperm(len(scans.images), generator=torch.Generator().manual_seed(seed + 51))[:OWN_MAX]
            return StoredScans(scans.images[drawn].to(device), scans.labels[drawn].to(device))

        @cache
        def inside() -> tuple[Features, str]:
            return _inside(probe), probe.reference.tap_names[-2:][0]

        @cache
        def clusters() -> dict[str, Cluster]:
            scans = own_scans()
            return clusters_of(target, inside()[0], scans.images, scans.labels, seed=seed)

        return cls(profile.task, own_model, own_scans, inside, clusters)


def _inside(probe: Probe) -> Features:
    """Rendered images to logits and what every tap holds.

    Raises:
        DataError: the model gives answers alone.
    """
    if not probe.reference.gradients:
        raise DataError("the model gives answers alone: nobody can look inside it")

    def look(rendered: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        output, taps = probe.reference.forward_with_taps(probe.span.from_unit(probe.span.to_unit(rendered)), probe.taps)
        return probe.logits(output), dict(taps)

    return look
