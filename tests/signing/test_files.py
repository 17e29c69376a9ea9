"""Files and folders are reported in the words of `scanward verify --json`."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path

import pytest

import signing
from signing import Outcome, Reason, TrustPolicy, verify_file, verify_paths
from signing.testing import Hospital, flip_pixel_bit


@pytest.fixture
def folder(ct: bytes, mr: bytes, hospital: Hospital, now: datetime, tmp_path: Path) -> Path:
    signed = signing.sign(ct, signer=hospital.signer("ct"), at=now, tsa=hospital.authority(lambda: now), purpose=1)
    (tmp_path / "study/series").mkdir(parents=True)
    (tmp_path / "study/a.dcm").write_bytes(signed)
    (tmp_path / "study/b.dcm").write_bytes(flip_pixel_bit(signed))
    (tmp_path / "study/series/c.dcm").write_bytes(mr)
    (tmp_path / "study/series/d.txt").write_text("not DICOM")
    return tmp_path / "study"


def test_a_folder_is_searched_and_every_file_gets_its_verdict(folder: Path, hospital: Hospital, now: datetime) -> None:
    found = list(verify_paths([folder], hospital.trust(), now))
    assert [(Path(each.path).name, each.verdict, each.reason, each.readable) for each in found] == [
        ("a.dcm", Outcome.PASSED, Reason.OK, True),
        ("b.dcm", Outcome.FAILED, Reason.MAC_MISMATCH, True),
        ("c.dcm", Outcome.FAILED, Reason.UNSIGNED, True),
        ("d.txt", Outcome.FAILED, Reason.MALFORMED, False),
    ]


def test_an_entry_has_exactly_the_keys_of_the_contract(folder: Path, hospital: Hospital, now: datetime) -> None:
    entry = json.loads(json.dumps(verify_file(folder / "a.dcm", hospital.trust(), now).as_json()))
    assert list(entry) == ["path", "verdict", "reason", "detail", "checks", "signatures"]
    assert entry["path"] == str(folder / "a.dcm")
    assert list(entry["checks"]) == [
        "crypto",
        "coverage",
        "signer",
        "chain",
        "revocation",
        "timestamp",
        "binding",
        "freshness",
    ]
    (signature,) = entry["signatures"]
    assert list(signature) == [
        "path",
        "uid",
        "profile",
        "purpose",
        "signer",
        "algorithm",
        "mac",
        "signed_at",
        "timestamp",
        "covers",
        "unsigned",
    ]
    assert signature["signer"]["subject"] == "CN=CT Scanner 0001,O=Scanward Demo Hospital"
    assert (signature["algorithm"], signature["mac"], signature["purpose"]) == ("RSA-3072", "SHA256", 1)
    assert signature["signed_at"] == signature["timestamp"] == "2026-03-01T12:00:00Z"
    assert "PatientID" in signature["covers"]
    assert "DigitalSignaturesSequence" in signature["unsigned"]


def test_what_cannot_be_established_is_indeterminate(folder: Path, hospital: Hospital, now: datetime) -> None:
    trust = hospital.trust(TrustPolicy(revocation_age_s_max=1))
    found = verify_file(folder / "a.dcm", trust, now)
    assert (found.verdict, found.reason) == (Outcome.INDETERMINATE, Reason.REVOCATION_UNKNOWN)


def test_a_large_file_is_mapped(
    folder: Path, hospital: Hospital, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signing.files._MAPPED_FROM", 1)
    assert verify_file(folder / "a.dcm", hospital.trust(), now).verdict is Outcome.PASSED


def test_what_is_no_file_is_an_error(hospital: Hospital, now: datetime, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path / "missing.dcm"):
        with pytest.raises(OSError, match=path.name):
            list(verify_paths([path], hospital.trust(), now))
    (tmp_path / "empty.dcm").touch()
    assert verify_file(tmp_path / "empty.dcm", hospital.trust(), now).reason is Reason.MALFORMED
