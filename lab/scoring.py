"""Scores images as they are with a fitted artefact."""

from pathlib import Path
from typing import Any

import torch

from detectors.artifact import Artefact
from detectors.models.answers import Ask
from gateway.profile import Profile
from lab.data import DataError, Split
from lab.seeds import seeds_of

BATCH = 64


def score(
    model: bytes,
    profile: Profile,
    directory: Path,
    manifest: bytes,
    scans: Split,
    device: torch.device,
    ask: Ask | None = None,
) -> dict[str, Any]:
    """p-values and predictions of every scan.

    The manifest of the artefact in `directory` is believed: its signature is the caller's to check, its digests are
    checked here. `ask` is the way to a model that only a server has.

    Returns:
        `ids`, `p` of the ensemble, `detectors` with each one's own p-values, and `prediction`, index of a class.
    """
    if not len(scans):
        raise DataError("the split is empty")
    ensemble = Artefact.load(directory, manifest, model, profile.sha256, device, ask=ask).ensemble
    table: dict[str, Any] = {"ids": list(scans.ids), "p": [], "detectors": {}, "prediction": []}
    for part in torch.split(scans.images, BATCH):
        seen = ensemble.examine(part.to(device), seeds_of(part).to(device))
        table["p"] += seen.p_value.tolist()
        table["prediction"] += seen.predictions.tolist()
        for name, values in seen.p_values.items():
            table["detectors"].setdefault(name, []).extend(values.tolist())
    return table
