"""A scanner update in front of a real gateway: told, recorded, remembered, and nothing is judged more mildly for it."""

from __future__ import annotations

import io
import json
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydicom import dcmread
from pydicom.data import get_testdata_file

from gateway.app.assembly import AUDIT_LOG
from gateway.audit.export import lines
from gateway.audit.sqlite import SqliteReader
from gateway.client.client import Answer, Client
from gateway.receipt import verify_receipt
from gateway.testing import GatewayProcess, Site
from signing import sign

CALIBRATED_NOISE, UPDATED_NOISE = 8.0, 40.0


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, site: Site) -> Site:
    """The site with storage of its own, so that what drifts here has drifted for nobody else."""
    folder = tmp_path_factory.mktemp("drift")
    for entry in site.directory.iterdir():
        if entry.name not in ("data", "scanward.toml"):
            (folder / entry.name).symlink_to(entry)
    drift = "[drift]\npatients_between_false_alarms = 1000.0\n"
    (folder / "scanward.toml").write_text(site.config.read_text() + drift)
    return Site(folder, site.hospital, site.tokens)


def acquired(site: Site, patient: int, noise: float, *, signed: bool = True) -> bytes:
    """CT_small of another patient, as a scanner with this noise would have signed it."""
    dataset = dcmread(io.BytesIO(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()))
    grain = np.random.default_rng(patient).normal(0.0, noise, dataset.pixel_array.shape)
    dataset.PixelData = (dataset.pixel_array + grain).astype("<i2").tobytes()
    dataset.PatientID = f"P{patient}"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.10.1.{patient}"
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    data = buffer.getvalue()
    return sign(data, signer=site.hospital.signer("ct"), at=datetime.now(UTC)) if signed else data


def guarantee(answer: Answer, site: Site) -> str:
    key = load_pem_public_key((site.directory / "keys" / "receipt.pub").read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    return str(verify_receipt(answer.receipt, [key])["predicate"]["guarantee"])


def suspect(answer: Answer) -> bool:
    return any(finding.stage == "detection" and finding.p_value <= 0.01 for finding in answer.findings)


def gauge(gateway: GatewayProcess, name: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{gateway.addresses.metrics}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line.startswith(name + "{")}


def test_a_scanner_update_is_told_and_the_guarantee_is_suspended_until_another_artefact(watched: Site) -> None:
    """Stray unsigned scans before it change nothing; scans that are suspect afterwards are held as before."""
    drifting = 'scanward_drift_suspended{model="small",source="reviewer"}'
    with GatewayProcess(watched.config) as gateway:
        with Client(gateway.addresses.grpc, token=watched.tokens["reviewer"]) as client:
            for patient in range(1, 13):
                client.protect(acquired(watched, patient, UPDATED_NOISE, signed=False), "ct")
            calm = [client.protect(acquired(watched, patient, CALIBRATED_NOISE), "ct") for patient in range(100, 112)]
            assert {guarantee(answer, watched) for answer in calm} == {"confident"}
            assert gauge(gateway, "scanward_drift_suspended") == {drifting: 0.0}

            odd = [client.protect(acquired(watched, patient, UPDATED_NOISE), "ct") for patient in range(200, 220)]

        told = [guarantee(answer, watched) for answer in odd]
        assert told == sorted(told)
        assert told[0] == "confident"
        assert told[-1] == "suspended"
        assert all(answer.disposition == "quarantine" for answer in odd if suspect(answer))
        assert sum(suspect(answer) for answer in odd[told.index("suspended") :]) >= 2
        assert gauge(gateway, "scanward_drift_suspended") == {drifting: 1.0}
        assert any('detector="ensemble"' in series for series in gauge(gateway, "scanward_drift_martingale"))
        log = [json.loads(line) for line in gateway.log().splitlines() if '"drift"' in line]
        assert log
        assert log[0]["source"] == "reviewer"
        with SqliteReader(watched.directory / "data" / AUDIT_LOG) as reader:
            records = [line["record"] for line in lines(reader) if line["record"]["kind"] == "drifted"]
        assert {(record["source"], record["direction"]) for record in records} == {("reviewer", "suspicious")}

    with GatewayProcess(watched.config) as gateway:
        with Client(gateway.addresses.grpc, token=watched.tokens["reviewer"]) as client:
            after = client.protect(acquired(watched, 300, CALIBRATED_NOISE), "ct")
            again = [client.protect(acquired(watched, patient, UPDATED_NOISE), "ct") for patient in range(301, 306)]
        assert (after.disposition, guarantee(after, watched)) == ("admit", "suspended")
        assert {answer.disposition for answer in again if suspect(answer)} == {"quarantine"}
        assert gauge(gateway, "scanward_drift_suspended") == {drifting: 1.0}
