"""Thresholds follow a scanner that changed where a person says so, and never an attacker who walks them."""

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from detectors.artifact import Promises
from detectors.ensemble import JOINED
from detectors.errors import ArtefactError
from gateway.protected import MANIFEST_ENVELOPE
from gateway.testing import Site, write_signing_key
from lab import phantoms, recalibration, sealing
from lab.cli import main
from lab.data import DataError, MovedTooFarError
from lab.phantom_detectors import PUBLIC_KEY
from lab.walking import FPR, Walk
from signing import sign

SCANS = 104
POLICY = 'unsigned = "reject"\n[[allowed_signers]]\ncommon_name = "CT Scanner 0001"\n'


# -- the walk, on statistics alone --


def test_a_threshold_cannot_be_walked_away_step_by_step() -> None:
    """Each step is small, and each is taken by whoever looks at that step alone; the anchor sees them together."""
    walk = Walk.begin(seed=11)
    start, refused = walk.threshold, 0
    for _ in range(30):
        proposal = walk.step(share=0.03, above=0.15)
        try:
            recalibration.refuse_far(proposal.movements, 1.0, accept_movement=False)
        except MovedTooFarError:
            refused += 1
        else:
            walk.take(proposal)

    assert refused >= 20
    assert walk.threshold - start <= 1.0

    alone = Walk.begin(seed=11)
    steps = []
    for _ in range(30):
        before, proposal = alone.threshold, alone.step(share=0.03, above=0.15)
        alone.take(proposal)
        steps.append(alone.threshold - before)
    assert max(steps) < 1.0  # so a bound on steps would have stopped none of them
    assert alone.threshold - start > 4.0


def test_scans_of_an_unchanged_source_are_taken() -> None:
    walk = Walk.begin(seed=11)
    for _ in range(10):
        proposal = walk.step(share=0.0, above=0.0)
        recalibration.refuse_far(proposal.movements, 1.0, accept_movement=False)
        walk.take(proposal)


def test_a_movement_that_is_not_a_number_is_too_far() -> None:
    worst = recalibration.Movement("a", FPR, 1.0, 1.0, float("nan"), float("nan"))
    with pytest.raises(MovedTooFarError):
        recalibration.refuse_far([worst], 1.0, accept_movement=False)


# -- the commands, on signed scans --


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A hospital that has enrolled one scanner by name, and whose artefact a person has signed."""
    site = Site.make(tmp_path_factory.mktemp("site"))
    (site.directory / "reject.toml").write_text(POLICY)
    folder = site.directory / "scans"
    folder.mkdir()
    for seed in phantoms.seeds("test", SCANS, skip=30_000):
        (folder / f"{seed}.dcm").write_bytes(signed(site, seed))
    return site


def signed(site: Site, seed: int, signer: str = "ct", **options: str) -> bytes:
    data = phantoms.to_dicom(phantoms.draw(seed, size=96), **options)
    return sign(data, signer=site.hospital.signer(signer), at=datetime.now(UTC))


def run(site: Site, *more: str, scans: str = "scans") -> Result:
    assets, detectors = phantoms.ASSETS, phantoms.ASSETS / "detectors"
    options = {
        "--model": assets / "model.onnx", "--profile": assets / "profile.toml", "--detectors": detectors,
        "--public-key": assets / PUBLIC_KEY, "--scans": site.directory / scans, "--config": site.config,
        "--trust": "strict", "--out": site.directory / "candidate",
    }  # fmt: skip
    return CliRunner().invoke(main, ["recalibrate", *(str(part) for pair in options.items() for part in pair), *more])


def test_a_candidate_is_written_only_within_the_bound_or_on_a_persons_word_and_never_signed(site: Site) -> None:
    candidate = site.directory / "candidate"
    refused = run(site, "--bound", "0.001", "--json")
    assert refused.exit_code == 1
    assert "--accept-movement" in refused.stderr
    assert not candidate.exists()
    told = json.loads(refused.stdout)
    assert told["n"] == SCANS
    assert {(each["detector"], each["rate"]) for each in told["movements"]} >= {(JOINED, 0.01), (JOINED, 0.05)}

    taken = run(site, "--bound", "0.001", "--accept-movement")

    assert taken.exit_code == 0, taken.output
    assert "ensemble at 0.01" in taken.stdout
    assert not (candidate / MANIFEST_ENVELOPE).exists()
    facts = json.loads((candidate / "manifest.json").read_bytes())
    assert facts["recalibrated"]["accepted_movement"] is True
    assert (facts["n_b"], facts["guarantee"]) == (SCANS, "marginal")

    write_signing_key(site.directory / "fit.pem")
    sealed = CliRunner().invoke(main, ["sign-artefact", str(candidate), "--key", str(site.directory / "fit.pem")])
    assert sealed.exit_code == 0, sealed.output
    manifest = sealing.believed(candidate, [site.directory / "fit.pub"])
    first, now = Promises.read(phantoms.ASSETS / "detectors", bundled()), Promises.read(candidate, manifest)
    assert torch.equal(now.anchor[JOINED].state()["statistics"], first.deployed[JOINED].state()["statistics"])
    assert now.deployed[JOINED].size == SCANS
    ensemble = sealing.opened(
        candidate, manifest, (phantoms.ASSETS / "model.onnx").read_bytes(), phantoms.profile(), torch.device("cpu")
    )
    assert ensemble.conformal.size == SCANS


def bundled() -> bytes:
    return sealing.believed(phantoms.ASSETS / "detectors", [phantoms.ASSETS / PUBLIC_KEY])


def test_only_what_an_enrolled_scanner_signed_counts_and_once_a_patient(site: Site) -> None:
    folder = site.directory / "mixed"
    folder.mkdir()
    one, two = signed(site, 6_040_000), signed(site, 6_040_001)
    changed = bytearray(two)
    changed[-1] ^= 1
    for name, data in {
        "one": one,
        "again": one,
        "same-patient": signed(site, 6_040_002, patient_id="PHANTOM-6040000"),
        "other-scanner": signed(site, 6_040_003, "mr"),
        "stranger": signed(site, 6_040_004, "stranger"),
        "unsigned": phantoms.to_dicom(phantoms.draw(6_040_005)),
        "changed": bytes(changed),
        "no-scan": b"notes",
    }.items():
        (folder / f"{name}.dcm").write_bytes(data)

    chosen = recalibration.choose(
        folder, sealing.trust_of(site.config, "strict"), phantoms.profile(), per_patient=1, lot=bytes(32)
    )

    assert len(chosen.images) == 1
    assert sum(chosen.left_out.values()) == 7
    assert chosen.left_out["mac_mismatch"] == 1
    assert chosen.left_out["unsigned"] == 1
    assert chosen.left_out["untrusted"] == 1
    assert chosen.left_out["signer_not_allowed"] == 1


def test_a_policy_that_names_no_signers_enrols_nobody(site: Site) -> None:
    with pytest.raises(DataError, match="allowed_signers"):
        recalibration.choose(
            site.directory / "scans", sealing.trust_of(site.config, "open"), phantoms.profile(), per_patient=1
        )


def test_an_artefact_that_nobody_signed_is_no_anchor(site: Site, tmp_path: Path) -> None:
    shutil.copytree(phantoms.ASSETS / "detectors", tmp_path / "detectors")
    manifest = tmp_path / "detectors" / MANIFEST_ENVELOPE
    manifest.write_bytes(manifest.read_bytes().replace(b'"payload"', b'"payloaD"'))

    refused = run(site, "--detectors", str(tmp_path / "detectors"))

    assert refused.exit_code == 2
    assert "Traceback" not in refused.output


def test_an_artefact_with_a_changed_file_is_not_signed(site: Site, tmp_path: Path) -> None:
    shutil.copytree(phantoms.ASSETS / "detectors", tmp_path / "detectors")
    weights = tmp_path / "detectors" / "fusion.safetensors"
    weights.write_bytes(weights.read_bytes() + b"\0")

    with pytest.raises(ArtefactError, match="fusion"):
        sealing.sign(tmp_path / "detectors", Ed25519PrivateKey.generate())
