"""DSSE envelopes open with the right key, type and bytes, and with nothing else."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from signing import EnvelopeError
from signing.envelope import create_key, key_id, load_private_key, load_public_key, open_envelope, seal

TYPE = "application/vnd.scanward.test+json"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))


def test_what_was_sealed_opens() -> None:
    assert open_envelope(seal(b"payload", TYPE, KEY), [OTHER.public_key(), KEY.public_key()], TYPE) == b"payload"


def test_the_signature_is_over_the_pre_authentication_encoding_of_the_specification() -> None:
    """The example of the DSSE protocol document: PAE("http://example.com/HelloWorld", "hello world")."""
    envelope = json.loads(seal(b"hello world", "http://example.com/HelloWorld", KEY))
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    KEY.public_key().verify(signature, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world")
    assert envelope["payload"] == "aGVsbG8gd29ybGQ="
    assert envelope["signatures"][0]["keyid"] == key_id(KEY.public_key())


def altered(**changes: object) -> bytes:
    return json.dumps({**json.loads(seal(b"payload", TYPE, KEY)), **changes}).encode()


SIGNATURE = json.loads(seal(b"payload", TYPE, KEY))["signatures"][0]


@pytest.mark.parametrize(
    "envelope",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        b"[" * 100_000,
        altered(payload="cGF5bG9hZA"),
        altered(payload=base64.b64encode(b"another").decode()),
        altered(payload=None),
        altered(payloadType="application/other"),
        altered(signatures=[]),
        altered(signatures=[SIGNATURE] * 9),
        altered(signatures={"keyid": "x"}),
        altered(signatures=[{**SIGNATURE, "keyid": key_id(OTHER.public_key())}]),
        altered(signatures=[{**SIGNATURE, "sig": base64.b64encode(bytes(64)).decode()}]),
        altered(signatures=[{**SIGNATURE, "sig": "!!!"}]),
    ],
)
def test_anything_else_does_not_open(envelope: bytes) -> None:
    with pytest.raises(EnvelopeError):
        open_envelope(envelope, [KEY.public_key(), OTHER.public_key()], TYPE)


def test_an_envelope_does_not_open_as_another_type_or_without_its_key() -> None:
    sealed = seal(b"payload", TYPE, KEY)
    for keys, kind in (([KEY.public_key()], "other"), ([OTHER.public_key()], TYPE), ([], TYPE)):
        with pytest.raises(EnvelopeError):
            open_envelope(sealed, keys, kind)


def test_a_key_id_is_a_hint_that_may_be_missing() -> None:
    without = altered(signatures=[{"sig": SIGNATURE["sig"]}])
    assert open_envelope(without, [KEY.public_key()], TYPE) == b"payload"


def test_keys_are_created_loaded_and_kept_private(tmp_path: Path) -> None:
    path = tmp_path / "receipt.key"
    key = create_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert key_id(load_public_key(f"{path}.pub")) == key_id(load_private_key(path).public_key())
    with pytest.raises(EnvelopeError, match="exists"):
        create_key(path)
    path.chmod(0o640)
    with pytest.raises(EnvelopeError, match="0640"):
        load_private_key(path)
    assert key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def test_a_file_that_is_no_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "junk.key"
    path.write_bytes(b"junk")
    path.chmod(0o600)
    for load in (load_private_key, load_public_key):
        with pytest.raises(EnvelopeError, match="junk"):
            load(path)
        with pytest.raises(EnvelopeError, match="missing"):
            load(tmp_path / "missing.key")
