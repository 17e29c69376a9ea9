"""DSSE envelopes with Ed25519 (github.com/secure-systems-lab/dsse, v1.0.2): artefacts, receipts, checkpoints."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from signing.errors import EnvelopeError

ENVELOPE_BYTES_MAX = 16 * 2**20
_SIGNATURES_MAX = 8


def seal(payload: bytes, payload_type: str, key: Ed25519PrivateKey) -> bytes:
    """A JSON envelope around `payload`, with one signature and its key id."""
    signature = key.sign(pre_authentication_encoding(payload, payload_type))
    envelope = {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": payload_type,
        "signatures": [{"keyid": key_id(key.public_key()), "sig": base64.b64encode(signature).decode()}],
    }
    return json.dumps(envelope, separators=(",", ":")).encode()


def open_envelope(envelope: bytes, keys: Sequence[Ed25519PublicKey], payload_type: str) -> bytes:
    """The payload, if one of `keys` signed it as this type.

    Raises:
        EnvelopeError: malformed, of another type, or signed by none of the keys.
    """
    payload, signatures = parse(envelope, payload_type)
    signed = pre_authentication_encoding(payload, payload_type)
    known = [(key_id(key), key) for key in keys]
    for stated in signatures:
        for identifier, key in known:
            if stated.get("keyid") in (None, "", identifier) and _verifies(key, stated["sig"], signed):
                return payload
    raise EnvelopeError("signed by none of the known keys, or altered")


def parse(envelope: bytes, payload_type: str) -> tuple[bytes, list[dict[str, Any]]]:
    """The payload and the signatures, `sig` decoded; nothing of it is to be believed yet.

    Raises:
        EnvelopeError: malformed, or of another type.
    """
    if len(envelope) > ENVELOPE_BYTES_MAX:
        raise EnvelopeError(f"an envelope of {len(envelope)} bytes")
    try:
        parsed = json.loads(envelope)
        payload = _decoded(parsed["payload"])
        stated_type = parsed["payloadType"]
        signatures = [{**each, "sig": _decoded(each["sig"])} for each in parsed["signatures"]]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise EnvelopeError("not a DSSE envelope") from error
    if stated_type != payload_type:
        raise EnvelopeError(f"the payload is not of the type {payload_type}")
    if not 1 <= len(signatures) <= _SIGNATURES_MAX:
        raise EnvelopeError(f"{len(signatures)} signatures")
    return payload, signatures


def pre_authentication_encoding(payload: bytes, payload_type: str) -> bytes:
    """What is signed: the payload bound to its type (DSSE protocol, "PAE")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def key_id(public_key: Ed25519PublicKey) -> str:
    """SHA-256 of the SubjectPublicKeyInfo in DER, in hexadecimal digits."""
    return hashlib.sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def load_private_key(path: str | Path) -> Ed25519PrivateKey:
    """Read an Ed25519 key from a PEM file that nobody but its owner may touch.

    Raises:
        EnvelopeError: open to others, unreadable, or another kind of key.
    """
    try:
        with Path(path).open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise EnvelopeError(f"{path}: mode {mode:04o}; a private key must have mode 0600")
            key = load_pem_private_key(file.read(65536), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EnvelopeError(f"{path}: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise EnvelopeError(f"{path}: not an Ed25519 key")
    return key


def load_public_key(path: str | Path) -> Ed25519PublicKey:
    """Read an Ed25519 public key from a PEM file.

    Raises:
        EnvelopeError: unreadable, or another kind of key.
    """
    try:
        key = load_pem_public_key(Path(path).read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise EnvelopeError(f"{path}: {error}") from error
    if not isinstance(key, Ed25519PublicKey):
        raise EnvelopeError(f"{path}: not an Ed25519 key")
    return key


def create_key(path: str | Path) -> Ed25519PrivateKey:
    """A new key: the private half at `path`, mode 0600, the public half beside it with the suffix `.pub`.

    Raises:
        EnvelopeError: there is a file already, or it cannot be written.
    """
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private)
        Path(f"{path}.pub").write_bytes(public)
    except OSError as error:
        raise EnvelopeError(f"{path}: {error.strerror}") from error
    return key


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return base64.b64decode(text, altchars=b"-_", validate=True)


def _verifies(key: Ed25519PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        return False
    return True
