"""A checkpoint is believed only when one of our keys signed exactly it; and other people's tools can check it."""

from __future__ import annotations

import base64
import hashlib
import subprocess

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.audit.checkpoint import Checkpoint, CheckpointError

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
CHECKPOINT = Checkpoint("scanward-audit/one", 4711, bytes(range(32)), "2026-05-04T12:00:00.000000Z")
NOTE = CHECKPOINT.sign(KEY)
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def test_what_was_signed_is_read_back():
    assert Checkpoint.open(NOTE, [OTHER.public_key(), KEY.public_key()]) == CHECKPOINT


def test_its_form_is_that_of_the_note_specification():
    lines = NOTE.decode().split("\n")
    assert lines[:3] == ["scanward-audit/one", "4711", base64.b64encode(bytes(range(32))).decode()]
    assert lines[4] == ""
    dash, name, signature = lines[5].split(" ")
    raw = KEY.public_key().public_bytes_raw()
    assert (dash, name, lines[6]) == ("—", "scanward-audit/one", "")
    identifier = hashlib.sha256(b"scanward-audit/one\n\x01" + raw).digest()[:4]
    assert base64.b64decode(signature).startswith(identifier)


def test_openssl_verifies_it(tmp_path):
    text, _, tail = NOTE.partition(b"\n\n")
    (tmp_path / "text").write_bytes(text + b"\n")
    (tmp_path / "sig").write_bytes(base64.b64decode(tail.split(b" ")[2])[4:])
    (tmp_path / "key").write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key", "-rawin", "-in", "text", "-sigfile", "sig"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode == 0
    (tmp_path / "text").write_bytes(text.replace(b"4711", b"4712") + b"\n")
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, check=False).returncode != 0


def test_a_witness_may_add_its_signature():
    cosigned = NOTE + "— witness.example/w1 ".encode() + base64.b64encode(b"1234" + bytes(72)) + b"\n"
    assert Checkpoint.open(cosigned, [KEY.public_key()]) == CHECKPOINT


@pytest.mark.parametrize(
    "note",
    [
        b"",
        b"\n\n",
        b"not a note",
        b"\xff\xfe\n\n",
        NOTE.replace(b"4711", b"4712"),
        NOTE.replace(b"audit/one\n4711", b"audit/two\n4711"),
        NOTE.replace(b"time 2026", b"time 2027"),
        NOTE.replace(b"\n\n", b"\nmore\n\n"),
        NOTE.replace("— ".encode(), b"- "),
        NOTE[:-20],
        NOTE + b"x" * 70_000,
        CHECKPOINT.sign(OTHER),
        Checkpoint("a", 10**15, bytes(32), "").sign(KEY),
        Checkpoint("a", 1, bytes(31), "").sign(KEY),
        Checkpoint("a b", 1, bytes(32), "").sign(KEY),
        NOTE.replace(b"\n4711\n", b"\n04711\n"),
    ],
)
def test_anything_else_is_refused(note):
    with pytest.raises(CheckpointError):
        Checkpoint.open(note, [KEY.public_key()])
