"""A receipt proves what was decided about which bytes, and tells a submitter nothing that helps an attack."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway import documents
from gateway.finding import GatewayReason
from gateway.receipt import PAYLOAD_TYPE, Notary, ReceiptError, verify_receipt
from gateway.reply import Consequence, Prediction
from gateway.verdict import Disposition, Verdict
from signing import envelope

KEY = Ed25519PrivateKey.from_private_bytes(bytes(32))
KEYS = [KEY.public_key()]
HELD = Verdict(Disposition.QUARANTINE, (GatewayReason.SUSPECT,))
NOTARY = Notary(KEY, clock=lambda: datetime(2026, 5, 4, 12, 0, 1, tzinfo=UTC))


def test_binds_scan_examination_decision_and_consequence(make_case):
    case = make_case()
    statement = verify_receipt(NOTARY.issue(case, HELD, Consequence(quarantine_id="ab" * 16)).envelope, KEYS)
    assert statement == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "scan", "digest": {"sha256": case.scan.sha256}}],
        "predicateType": "https://scanward.dev/receipt/v1",
        "predicate": {
            "issuedAt": "2026-05-04T12:00:01.000000Z",
            "receivedAt": "2026-05-04T12:00:00.123456Z",
            "route": "ct",
            "disposition": "quarantine",
            "insteadOf": None,
            "examination": {"sha256": documents.examination_sha256(case.findings, HELD)},
            "prediction": None,
            "quarantineId": "ab" * 16,
            "guarantee": None,
            "decidedBy": {
                "model": {"sha256": "11" * 32},
                "profile": {"sha256": "22" * 32},
                "policy": {"sha256": "44" * 32},
                "trust": {"sha256": "55" * 32},
            },
        },
    }


@pytest.mark.parametrize("word", ["confident", "marginal", "suspended"])
def test_says_what_the_detectors_promise_is_worth(make_case, word):
    receipt = NOTARY.issue(make_case(), HELD, Consequence(), word)
    assert verify_receipt(receipt.envelope, KEYS)["predicate"]["guarantee"] == word


def test_binds_the_prediction(make_case):
    prediction = Prediction("ct", "1", ("clear", "nodule"), (0.25, 0.75))
    receipt = NOTARY.issue(make_case(), Verdict(Disposition.ADMIT, ()), Consequence(prediction))
    assert verify_receipt(receipt.envelope, KEYS)["predicate"]["prediction"] == {"sha256": prediction.sha256}


def test_tells_no_statistic_no_detector_and_no_exact_reason(make_case):
    case = make_case()
    payload = base64.b64decode(json.loads(NOTARY.issue(case, HELD, Consequence()).envelope)["payload"])
    for secret in (b"uad", b"twin", b"suspect", b"0.001", b"3.1", b"signed by", b"ct-scanner"):
        assert secret not in payload


@pytest.mark.parametrize("change", ["detail", "score", "seconds", "verdict"])
def test_the_examination_digest_covers_findings_and_verdict(make_case, change):
    case, verdict = make_case(), HELD
    before = documents.examination_sha256(case.findings, verdict)
    signature, detection = case.findings
    changed = {"detail": {"detail": "x"}, "score": {"score": 3.2}, "seconds": {"seconds": 0.021}, "verdict": {}}[change]
    if change == "verdict":
        verdict = replace(verdict, unsafe=("signature.unsigned",))
    assert documents.examination_sha256((signature, replace(detection, **changed)), verdict) != before


def test_a_changed_receipt_is_refused(make_case):
    sealed = json.loads(NOTARY.issue(make_case(), HELD, Consequence()).envelope)
    payload = base64.b64decode(sealed["payload"]).replace(b"quarantine", b"admit_____")
    sealed["payload"] = base64.b64encode(payload).decode()
    with pytest.raises(ReceiptError):
        verify_receipt(json.dumps(sealed).encode(), KEYS)


def test_another_keys_receipt_is_refused(make_case):
    with pytest.raises(ReceiptError):
        verify_receipt(Notary(Ed25519PrivateKey.generate()).issue(make_case(), HELD, Consequence()).envelope, KEYS)


@pytest.mark.parametrize(
    "payload",
    [b"not json", b"[]", b'{"_type":"x"}', b'{"_type":"https://in-toto.io/Statement/v1","predicateType":"y"}'],
)
def test_a_signed_thing_that_is_no_receipt_is_refused(payload):
    with pytest.raises(ReceiptError):
        verify_receipt(envelope.seal(payload, PAYLOAD_TYPE, KEY), KEYS)


def test_a_signed_thing_of_another_type_is_refused():
    """An audit checkpoint signed by mistake with the receipt key is still no receipt."""
    with pytest.raises(ReceiptError):
        verify_receipt(envelope.seal(b"{}", "application/vnd.scanward.audit-checkpoint+json", KEY), KEYS)


def test_the_signature_checks_with_nothing_but_the_dsse_specification(make_case):
    """PAE(type, body) = "DSSEv1" SP len SP type SP len SP body (secure-systems-lab/dsse, protocol.md)."""
    sealed = json.loads(NOTARY.issue(make_case(), HELD, Consequence()).envelope)
    body = base64.b64decode(sealed["payload"])
    kind = sealed["payloadType"].encode()
    pae = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)
    KEY.public_key().verify(base64.b64decode(sealed["signatures"][0]["sig"]), pae)
