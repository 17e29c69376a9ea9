"""The bundled artefact is the one that was signed, fits the bundled model, and does what it is shown to do."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detectors.artifact import Artefact
from gateway.protected import MANIFEST_ENVELOPE, MANIFEST_TYPE
from gateway.study.fusion import fuse
from lab import phantoms
from lab.attacks.pgd import PGD
from lab.phantom_detectors import FPR, PUBLIC_KEY
from lab.results import REPORT, Bench
from signing.envelope import load_public_key, open_envelope

BYTES_MAX = 6 * 2**20


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench.open(phantoms.ASSETS)


def stored(seeds: range) -> torch.Tensor:
    """(N, 1, 512, 512) stored values of drawn slices."""
    frames = np.stack([phantoms.draw(seed).pixels for seed in seeds])
    return torch.from_numpy(frames.astype(np.float32))[:, None]


def test_it_is_signed_small_and_calibrated_with_confidence() -> None:
    folder = phantoms.ASSETS / "detectors"
    manifest = open_envelope(
        (folder / MANIFEST_ENVELOPE).read_bytes(), [load_public_key(phantoms.ASSETS / PUBLIC_KEY)], MANIFEST_TYPE
    )
    facts = json.loads(manifest)

    assert facts["guarantee"] == "confident"
    assert facts["n_b"] >= 1000
    assert sum(path.stat().st_size for path in folder.iterdir()) < BYTES_MAX
    assert not list(Path(phantoms.ASSETS).glob("**/*private*"))


def test_it_loads_for_the_bundled_model_and_profile(bench: Bench) -> None:
    assert isinstance(bench.artefact, Artefact)
    assert set(bench.artefact.denoisers) == {"dncnn", "median"}
    assert bench.artefact.manifest["fpr"] == FPR


def test_card_and_report_speak_of_the_model_that_lies_there() -> None:
    """Figures are measured by `python -m lab.phantom_classifier` and `make results`, on this very file."""
    model = phantoms.ASSETS / "model.onnx"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()

    assert digest in (phantoms.ASSETS / "model-card.md").read_text()
    assert digest[:16] in REPORT.read_text()
    assert model.stat().st_size < 3_000_000


def test_it_passes_clean_slices_and_flags_attacked_ones(bench: Bench) -> None:
    """Slices that are for showing only; the full measurement is `make results`."""
    seeds = phantoms.seeds("demo", 24)
    slices, labels = stored(seeds), torch.from_numpy(phantoms.labels(seeds))
    clean = bench.ensemble.examine(bench.target.view(slices))
    right = clean.predictions == labels

    found = PGD(eps=2, steps=12)(bench.target, slices[right], labels[right])
    attacked = bench.ensemble.examine(bench.target.view(found.images[found.success]))

    assert int((clean.p_value <= FPR).sum()) <= 2
    assert int(found.success.sum()) >= 8
    assert float((attacked.p_value <= FPR).float().mean()) > 0.6


def test_one_attacked_slice_of_a_hundred_is_found_whether_sent_as_a_study_or_as_frames_of_one_object(
    bench: Bench,
) -> None:
    """A rank among the calibration's clean slices says at least 0.0025, and a hundred times that alarms nobody."""
    clean, shown = phantoms.seeds("test", 99, skip=14_000), phantoms.seeds("demo", 12)
    quiet = torch.cat(
        [bench.ensemble.examine(bench.target.view(stored(clean[at : at + 33]))).p_value for at in (0, 33, 66)]
    )
    found = PGD(eps=2, steps=12)(bench.target, stored(shown), torch.from_numpy(phantoms.labels(shown)))
    loud = bench.ensemble.examine(bench.target.view(found.images[found.success])).p_value.tolist()

    assert fuse(quiet.tolist()).p_value > 0.05
    assert 99 * float(quiet.min()) > FPR
    assert len(loud) >= 4
    studies = [fuse([*quiet.tolist(), each]) for each in loud]
    assert sum(study.adjusted[-1] <= 0.05 for study in studies) >= 0.8 * len(loud)
    assert sum(100 * each <= FPR for each in loud) >= 0.5 * len(loud)
