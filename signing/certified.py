"""DSSE envelopes signed by the holder of an X.509 certificate, which travels in the envelope with its issuers."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding

from signing.certificates import fingerprint, load_certificates, verify_digest
from signing.envelope import parse, pre_authentication_encoding
from signing.errors import EnvelopeError, SignatureError
from signing.reasons import Reason
from signing.signers import Signer
from signing.trust import Trust

_MAC = "SHA256"
_CHAIN_MAX = 8
_PEM_BYTES_MAX = 256 * 1024


def seal(payload: bytes, payload_type: str, signer: Signer, chain: tuple[x509.Certificate, ...] = ()) -> bytes:
    """A JSON envelope around `payload`; the key id is the certificate's SHA-256 fingerprint."""
    digest = hashlib.sha256(pre_authentication_encoding(payload, payload_type)).digest()
    certificates = (signer.certificate, *chain)
    signature = {
        "keyid": fingerprint(signer.certificate),
        "sig": base64.b64encode(signer.sign_digest(digest, _MAC)).decode(),
        "cert": b"".join(each.public_bytes(Encoding.PEM) for each in certificates).decode(),
    }
    envelope = {
        "payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": [signature],
    }  # fmt: skip
    return json.dumps(envelope, separators=(",", ":")).encode()


def open_envelope(envelope: bytes, payload_type: str, trust: Trust, *, at: datetime) -> tuple[bytes, x509.Certificate]:
    """The payload, and who signed it, if `trust` believes them.

    An envelope has no time stamp, so certificates are judged as at `at`; the policy's list of allowed signers holds.

    Raises:
        EnvelopeError: malformed, or of another type.
        SignatureError: altered (`mac_mismatch`), or its signer is not believed; says why.
    """
    payload, (stated, *others) = parse(envelope, payload_type)
    if others:
        raise EnvelopeError("more than one signature")
    certificate, *chain = _certificates(stated.get("cert"))
    digest = hashlib.sha256(pre_authentication_encoding(payload, payload_type)).digest()
    try:
        verify_digest(certificate, stated["sig"], digest, _MAC)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError) as error:
        raise SignatureError(Reason.MAC_MISMATCH, "the manifest or its signature was changed") from error

    believed = replace(trust, intermediates=(*trust.intermediates, *chain), _paths={})
    problems = [problem for problem in believed.judge(certificate, at, at) if not trust.tolerates(problem)]
    if problems:
        first = min(problems, key=lambda problem: problem.reason.precedence)
        indeterminate = all(problem.reason is Reason.REVOCATION_UNKNOWN for problem in problems)
        raise SignatureError(first.reason, first.detail, indeterminate=indeterminate)
    return payload, certificate


def _certificates(pem: object) -> list[x509.Certificate]:
    """The signer's certificate first."""
    try:
        if not isinstance(pem, str) or len(pem) > _PEM_BYTES_MAX:
            raise ValueError
        found = list(load_certificates(pem.encode("ascii")))
    except ValueError as error:
        raise EnvelopeError("the envelope carries no readable certificate") from error
    if not 1 <= len(found) <= _CHAIN_MAX:
        raise EnvelopeError(f"the envelope carries {len(found)} certificates")
    return found
