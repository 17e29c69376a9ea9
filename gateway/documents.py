"""The JSON forms of findings, verdicts, predictions and replies, written once: what is digested, held and remembered.

Numbers come back exactly (Python writes the shortest decimal that reads as the same double); those that JSON does not
have (`nan`, `inf`) are written as text. Two digests of the same facts are equal, whoever takes them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from gateway.finding import Finding, GatewayReason, Outcome
from gateway.reply import Prediction, Receipt, Reply
from gateway.study.study import Judged
from gateway.verdict import Disposition, Verdict
from signing import Reason

Document = dict[str, Any]


def canonical(document: Mapping[str, Any]) -> bytes:
    """The one byte form of a JSON document: sorted keys, no spaces, ASCII."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def examination_sha256(findings: Sequence[Finding], verdict: Verdict) -> str:
    """One digest over what was found and what was decided.

    Not one each: a verdict alone has so few values that its digest could be reversed by trying them all. The times
    and statistics of the findings are what makes this one impossible to guess.
    """
    document = {"findings": [of_finding(finding) for finding in findings], "verdict": of_verdict(verdict)}
    return hashlib.sha256(canonical(document)).hexdigest()


def study_sha256(judged: Judged) -> str:
    """One digest over what was found in each slice and what was decided about them together, as above."""
    document = {
        "slices": [
            {
                "scan_sha256": each.reply.scan_sha256,
                "findings": [of_finding(finding) for finding in each.reply.findings],
                "verdict": of_verdict(each.reply.verdict),
                "p_value": each.p_value,
                "adjusted_p_value": each.adjusted,
            }
            for each in judged.slices
        ],
        "p_value": judged.p_value,
        "false_discovery_rate": judged.false_discovery_rate,
        "verdict": of_verdict(judged.verdict),
    }
    return hashlib.sha256(canonical(document)).hexdigest()


def of_finding(finding: Finding) -> Document:
    """Every field of a finding."""
    return {
        "stage": finding.stage,
        "outcome": str(finding.outcome),
        "reason": str(finding.reason),
        "detail": finding.detail,
        "score": _number(finding.score),
        "p_value": _number(finding.p_value),
        "p_values": {name: _number(value) for name, value in finding.p_values.items()},
        "seconds": _number(finding.seconds),
    }


def to_finding(document: Mapping[str, Any]) -> Finding:
    """The finding that `of_finding` wrote; raises KeyError, TypeError or ValueError on anything else."""
    score, p_value = document["score"], document["p_value"]
    return Finding(
        stage=document["stage"],
        outcome=Outcome(document["outcome"]),
        reason=_reason(document["reason"]),
        detail=document["detail"],
        score=None if score is None else float(score),
        p_value=None if p_value is None else float(p_value),
        p_values=MappingProxyType({name: float(value) for name, value in document["p_values"].items()}),
        seconds=float(document["seconds"]),
    )


def of_verdict(verdict: Verdict) -> Document:
    """Every field of a verdict; `released_by` only where somebody did."""
    document: Document = {
        "disposition": verdict.disposition.label,
        "reasons": [str(reason) for reason in verdict.reasons],
        "unsafe": list(verdict.unsafe),
        "rules": list(verdict.rules),
        "instead_of": None if verdict.instead_of is None else of_verdict(verdict.instead_of),
    }
    return {**document, "released_by": list(verdict.released_by)} if verdict.released_by else document


def to_verdict(document: Mapping[str, Any]) -> Verdict:
    """The verdict that `of_verdict` wrote; raises KeyError, TypeError or ValueError on anything else."""
    meant = document["instead_of"]
    return Verdict(
        Disposition[document["disposition"].upper()],
        tuple(_reason(reason) for reason in document["reasons"]),
        tuple(document["unsafe"]),
        tuple(document["rules"]),
        None if meant is None else to_verdict(meant),
        tuple(document.get("released_by", ())),
    )


def of_prediction(prediction: Prediction) -> Document:
    """Every field of a prediction."""
    return {
        "model": prediction.model,
        "version": prediction.version,
        "classes": list(prediction.classes),
        "scores": [_number(score) for score in prediction.scores],
    }


def to_prediction(document: Mapping[str, Any]) -> Prediction:
    """The prediction that `of_prediction` wrote; raises KeyError, TypeError or ValueError on anything else."""
    return Prediction(
        document["model"],
        document["version"],
        tuple(document["classes"]),
        tuple(float(score) for score in document["scores"]),
    )


def of_reply(reply: Reply) -> Document:
    """Every field of a reply."""
    return {
        "scan_sha256": reply.scan_sha256,
        "verdict": of_verdict(reply.verdict),
        "prediction": None if reply.prediction is None else of_prediction(reply.prediction),
        "receipt": reply.receipt.envelope.decode(),
        "place": reply.place,
        "findings": [of_finding(finding) for finding in reply.findings],
        "quarantine_id": reply.quarantine_id,
    }


def to_reply(document: Mapping[str, Any]) -> Reply:
    """The reply that `of_reply` wrote; raises KeyError, TypeError or ValueError on anything else."""
    prediction = document["prediction"]
    return Reply(
        document["scan_sha256"],
        to_verdict(document["verdict"]),
        None if prediction is None else to_prediction(prediction),
        Receipt(document["receipt"].encode()),
        document["place"],
        tuple(to_finding(finding) for finding in document["findings"]),
        document["quarantine_id"],
    )


def _number(value: float | None) -> float | str | None:
    if value is None:
        return None
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _reason(word: str) -> Reason | GatewayReason:
    try:
        return GatewayReason(word)
    except ValueError:
        return Reason(word)
