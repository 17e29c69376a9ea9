"""What a reply shows to whom: nothing that helps to tune an attack leaves to a submitter."""

from __future__ import annotations

import pytest

from gateway.api.v1 import gateway_pb2 as pb
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.receivers.wire import coarse, sentence, to_wire
from gateway.reply import Prediction, Receipt, Reply
from gateway.verdict import Disposition, Verdict
from signing import Reason

FINDINGS = (
    Finding("signature", Outcome.FAILED, Reason.MAC_MISMATCH, "the MAC of signature 1 differs"),
    Finding(
        "detection",
        Outcome.FAILED,
        GatewayReason.SUSPECT,
        "p-value 0.003",
        5.8,
        0.003,
        {"twins": 0.003, "uad": 0.4},
        0.02,
    ),
)
PREDICTION = Prediction("chest", "1", ("clear", "nodule"), (0.25, 0.75))


def reply(
    disposition: Disposition = Disposition.REJECT,
    reasons: tuple[Reason | GatewayReason, ...] = (Reason.MAC_MISMATCH, GatewayReason.SUSPECT),
    prediction: Prediction | None = None,
    findings: tuple[Finding, ...] = FINDINGS,
) -> Reply:
    return Reply("ab" * 32, Verdict(disposition, reasons), prediction, Receipt(b"{}"), 7, findings)


def test_a_submitter_sees_the_disposition_coarse_reasons_and_the_receipt() -> None:
    wire = to_wire(reply(), findings=False)

    assert wire.disposition == pb.DISPOSITION_REJECT
    assert list(wire.reasons) == ["signature", "suspect"]
    assert (wire.scan_sha256, wire.receipt, wire.log_index) == ("ab" * 32, b"{}", 7)
    assert not wire.findings


def test_no_statistic_and_no_detector_reaches_a_submitter() -> None:
    sent = to_wire(reply(), findings=False).SerializeToString()
    for secret in (b"uad", b"twins", b"MAC", b"mac_mismatch", b"p-value"):
        assert secret not in sent


def test_a_reviewer_sees_exact_reasons_and_findings() -> None:
    wire = to_wire(reply(), findings=True)

    assert list(wire.reasons) == ["mac_mismatch", "suspect"]
    assert [finding.stage for finding in wire.findings] == ["signature", "detection"]
    assert wire.findings[1].p_value == 0.003
    assert dict(wire.findings[1].p_values) == {"twins": 0.003, "uad": 0.4}
    assert not wire.findings[0].HasField("p_value")


def test_the_prediction_keeps_the_order_of_the_classes() -> None:
    wire = to_wire(reply(Disposition.ADMIT, (), PREDICTION, ()), findings=False)

    assert wire.prediction.label == "nodule"
    assert [(score.name, score.score) for score in wire.prediction.scores] == [("clear", 0.25), ("nodule", 0.75)]


def test_without_a_prediction_the_field_is_absent() -> None:
    assert not to_wire(reply(), findings=False).HasField("prediction")


@pytest.mark.parametrize("reason", [*Reason, *GatewayReason])
def test_every_reason_has_one_of_four_coarse_words(reason: Reason | GatewayReason) -> None:
    assert coarse(reason) in {"signature", "suspect", "unexaminable", "malformed"}


def test_equal_coarse_reasons_are_told_once() -> None:
    """Their number would say which of the detectors' failures it was."""
    twice = reply(reasons=(GatewayReason.TIMEOUT, GatewayReason.DETECTOR_ERROR))
    assert list(to_wire(twice, findings=False).reasons) == ["unexaminable"]


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        (Reason.MALFORMED, True),
        (Reason.LIMITS, True),
        (GatewayReason.WRONG_SIZE, True),
        (GatewayReason.NO_PIXEL_DATA, True),
        (Reason.MAC_MISMATCH, False),
        (Reason.UNTRUSTED, False),
        (GatewayReason.SUSPECT, False),
        (GatewayReason.DETECTOR_ERROR, False),
        (GatewayReason.TIMEOUT, False),
    ],
)
def test_only_sentences_about_the_senders_own_bytes_are_told(reason: Reason | GatewayReason, told: bool) -> None:
    finding = Finding("any", Outcome.INDETERMINATE, reason, "the sentence")
    assert sentence([finding]) == ("the sentence" if told else "")


def test_a_sentence_is_fit_for_a_header() -> None:
    finding = Finding("signature", Outcome.FAILED, Reason.MALFORMED, "a\r\nb\x00ü" + "x" * 5000)
    told = sentence([finding])
    assert told.startswith("a??b??")
    assert len(told) == 1024
