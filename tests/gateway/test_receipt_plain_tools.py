"""Whoever has a public key can check a receipt and a checkpoint without us: by the commands of docs/receipts.md."""

from __future__ import annotations

import hashlib
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.audit.checkpoint import Checkpoint
from gateway.receipt import Notary
from gateway.reply import Consequence
from gateway.verdict import Disposition, Verdict
from signing import Reason

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "receipts.md").read_text()
RECEIPT, CHECKPOINT = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def folder(tmp_path, make_case):
    """What a third party has."""
    case = make_case(b"scan")
    verdict = Verdict(Disposition.ADMIT, (Reason.OK,))
    receipt = Notary(KEY, clock=lambda: datetime(2026, 5, 4, tzinfo=UTC)).issue(case, verdict, Consequence())
    public = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    note = Checkpoint("scanward-audit/one", 4711, bytes(32), "2026-05-04T12:00:00Z").sign(KEY)
    files = {"receipt.json": receipt.envelope, "receipt.pub": public, "scan.dcm": b"scan"}
    for name, content in {**files, "checkpoint.note": note, "checkpoint.pub": public}.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def _run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-ec", script], cwd=folder, capture_output=True, text=True, check=False)


def test_a_receipt_is_checked(folder):
    done = _run(RECEIPT, folder)
    assert done.returncode == 0, done.stderr
    assert "Signature Verified Successfully" in done.stdout
    assert "it speaks of this scan" in done.stdout


def test_a_receipt_of_another_scan_does_not_pass(folder):
    (folder / "scan.dcm").write_bytes(b"another")
    assert "it speaks of this scan" not in _run(RECEIPT, folder).stdout


@pytest.mark.parametrize("change", ["payload", "key"])
def test_a_receipt_that_was_changed_does_not_pass(folder, change):
    if change == "payload":
        envelope = (folder / "receipt.json").read_bytes()
        (folder / "receipt.json").write_bytes(envelope.replace(b'"payload":"ey', b'"payload":"fy'))
    else:
        other = Ed25519PrivateKey.generate().public_key()
        (folder / "receipt.pub").write_bytes(other.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert _run(RECEIPT, folder).returncode != 0


def test_a_checkpoint_is_checked(folder):
    done = _run(CHECKPOINT, folder)
    assert (done.returncode, done.stdout.strip()) == (0, "Signature Verified Successfully")


def test_a_checkpoint_that_was_changed_does_not_pass(folder):
    note = (folder / "checkpoint.note").read_bytes()
    (folder / "checkpoint.note").write_bytes(note.replace(b"4711", b"4710"))
    assert _run(CHECKPOINT, folder).returncode != 0


def test_the_digest_on_record_is_that_of_the_envelope(folder):
    done = _run("sha256sum < receipt.json", folder)
    assert done.stdout.split()[0] == hashlib.sha256((folder / "receipt.json").read_bytes()).hexdigest()
