"""Receipts: signed proof, for whoever sent a scan, of what was decided about which bytes and by what.

A DSSE envelope over an in-toto v1 Statement (docs/receipts.md). It goes to submitters, so it names no detector, no
statistic and no exact reason: those are bound by one digest, which a reviewer can recompute from the findings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway import documents
from gateway.case import Case, Digests
from gateway.errors import GatewayError
from gateway.reply import Consequence, Receipt
from gateway.study.study import Judged
from gateway.verdict import Verdict
from signing import envelope
from signing.errors import EnvelopeError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://scanward.dev/receipt/v1"
STUDY_PREDICATE_TYPE = "https://scanward.dev/study-receipt/v1"


class ReceiptError(GatewayError):
    """The envelope is no receipt that one of the keys signed."""

    permanent = True


class Notary:
    """Issues receipts with the gateway's receipt key; thread-safe."""

    def __init__(self, key: Ed25519PrivateKey, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """`key` signs receipts and nothing else; its id stands in each envelope, so that it can be replaced."""
        self._key = key
        self._clock = clock

    def issue(self, case: Case, verdict: Verdict, consequence: Consequence, guarantee: str | None = None) -> Receipt:
        """Bind scan, examination, decision and what was done into one signed statement.

        `guarantee` is what the detectors' false-positive rate is worth for this source; None where none examined.
        """
        prediction = consequence.prediction
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": "scan", "digest": {"sha256": case.scan.sha256}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {
                "issuedAt": _rfc3339(self._clock()),
                "receivedAt": _rfc3339(case.received_at),
                "route": case.scan.route,
                "disposition": verdict.label,
                "insteadOf": None if verdict.instead_of is None else verdict.instead_of.disposition.label,
                "examination": {"sha256": documents.examination_sha256(case.findings, verdict)},
                "prediction": None if prediction is None else {"sha256": prediction.sha256},
                "quarantineId": consequence.quarantine_id,
                "guarantee": guarantee,
                "decidedBy": _decided_by(case.digests),
                **({"releasedBy": list(verdict.released_by)} if verdict.released_by else {}),
            },
        }
        return Receipt(envelope.seal(documents.canonical(statement), PAYLOAD_TYPE, self._key))

    def issue_study(self, judged: Judged) -> Receipt:
        """Bind the instances of a study, what became of each, and the decision about all of them."""
        replies = [each.reply for each in judged.slices]
        verdict = judged.verdict
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": "scan", "digest": {"sha256": reply.scan_sha256}} for reply in replies],
            "predicateType": STUDY_PREDICATE_TYPE,
            "predicate": {
                "issuedAt": _rfc3339(self._clock()),
                "route": judged.route,
                "study": None if judged.study_digest is None else {"sha256": judged.study_digest},
                "disposition": verdict.disposition.label,
                "insteadOf": None if verdict.instead_of is None else verdict.instead_of.disposition.label,
                "examination": {"sha256": documents.study_sha256(judged)},
                "instances": [
                    {"disposition": reply.verdict.disposition.label, "receipt": {"sha256": reply.receipt.sha256}}
                    for reply in replies
                ],
                "decidedBy": _decided_by(judged.digests),
            },
        }
        return Receipt(envelope.seal(documents.canonical(statement), PAYLOAD_TYPE, self._key))


def verify_receipt(sealed: bytes, keys: Sequence[Ed25519PublicKey]) -> dict[str, Any]:
    """The statement inside, once the signature holds; `keys` are the present and the retired receipt keys.

    Raises:
        ReceiptError: no key signed it, or it is signed and is not a receipt.
    """
    try:
        statement: dict[str, Any] = json.loads(envelope.open_envelope(sealed, keys, PAYLOAD_TYPE))
    except EnvelopeError as error:
        raise ReceiptError(str(error)) from None
    except ValueError:
        raise ReceiptError("the payload is not JSON") from None
    if not isinstance(statement, dict) or statement.get("_type") != STATEMENT_TYPE:
        raise ReceiptError("the payload is no in-toto statement")
    if statement.get("predicateType") not in (PREDICATE_TYPE, STUDY_PREDICATE_TYPE):
        raise ReceiptError("the statement is no receipt of version 1")
    return statement


def _decided_by(digests: Digests) -> dict[str, dict[str, str]]:
    return {name: {"sha256": digest} for name, digest in asdict(digests).items() if digest}


def _rfc3339(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
