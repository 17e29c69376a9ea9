"""A reply in the words of the interface, cut to what the caller's role may see."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.api.v1 import gateway_pb2 as pb
from gateway.finding import UNEXAMINABLE, Finding, GatewayReason, Outcome
from gateway.reply import Prediction, Reply
from gateway.study.study import StudyReply
from gateway.verdict import Disposition, Verdict
from signing import Reason

DETAIL_CHARACTERS_MAX = 1024
"""Of a sentence in a header; gRPC peers take 8 KiB of headers in all."""

_MALFORMED = frozenset({Reason.LIMITS, Reason.MALFORMED, Reason.DUPLICATE_ELEMENT, Reason.FILE_META_MISMATCH})
_DISPOSITION = {
    Disposition.ADMIT: pb.DISPOSITION_ADMIT,
    Disposition.ADMIT_DENOISED: pb.DISPOSITION_ADMIT_DENOISED,
    Disposition.QUARANTINE: pb.DISPOSITION_QUARANTINE,
    Disposition.REJECT: pb.DISPOSITION_REJECT,
}


def to_wire(reply: Reply, *, findings: bool) -> pb.ProtectReply:
    """The reply as a caller may see it; `findings`: with them and with exact reasons (architecture 5.2)."""
    return pb.ProtectReply(
        scan_sha256=reply.scan_sha256,
        disposition=_DISPOSITION[reply.verdict.disposition],
        reasons=reasons_of(reply.verdict, exact=findings),
        prediction=_prediction(reply.prediction) if reply.prediction is not None else None,
        receipt=reply.receipt.envelope,
        log_index=reply.place,
        quarantine_id=reply.quarantine_id or "",
        released_by=reply.verdict.released_by,
        findings=[finding_to_wire(finding) for finding in reply.findings] if findings else (),
    )


def study_to_wire(reply: StudyReply, *, findings: bool) -> pb.StudyVerdict:
    """The answer about a study as a caller may see it; `findings`: with p-values and exact reasons."""
    judged = reply.judged
    return pb.StudyVerdict(
        study_sha256=judged.study_digest or "",
        disposition=_DISPOSITION[judged.verdict.disposition],
        reasons=reasons_of(judged.verdict, exact=findings),
        receipt=reply.receipt.envelope,
        log_index=reply.place,
        instances=len(judged.slices),
        p_value=judged.p_value if findings else None,
        slices=[
            pb.StudySlice(
                scan_sha256=each.reply.scan_sha256,
                p_value=each.p_value,
                adjusted_p_value=each.adjusted,
                suspect=judged.suspect(each),
            )
            for each in judged.slices
        ]
        if findings
        else (),
    )


def reasons_of(verdict: Verdict, *, exact: bool) -> list[str]:
    """Why it is not a plain admission; `exact` for whoever may see findings."""
    return list(dict.fromkeys(str(reason) if exact else coarse(reason) for reason in verdict.reasons))


def coarse(reason: Reason | GatewayReason) -> str:
    """The reason as a submitter sees it: which examination, never what in it gave the scan away."""
    if reason in _MALFORMED:
        return "malformed"
    if isinstance(reason, Reason):
        return "signature"
    return "suspect" if reason is GatewayReason.SUSPECT else "unexaminable"


def sentence(findings: Sequence[Finding]) -> str:
    """What is wrong with a scan that could not be read or rendered; empty where nothing of the kind was found.

    Every role may see it: it speaks of the sender's own bytes (tags, sizes, offsets), so it tells nothing about
    signers or detectors, and without it nobody could mend the scan.
    """
    for finding in findings:
        if finding.outcome is not Outcome.PASSED and (finding.reason in _MALFORMED or finding.reason in UNEXAMINABLE):
            return "".join(c if " " <= c <= "~" else "?" for c in finding.detail[:DETAIL_CHARACTERS_MAX])
    return ""


def _prediction(prediction: Prediction) -> pb.Prediction:
    scores = [
        pb.ClassScore(name=name, score=score) for name, score in zip(prediction.classes, prediction.scores, strict=True)
    ]
    return pb.Prediction(model=prediction.model, version=prediction.version, label=prediction.label, scores=scores)


def finding_to_wire(finding: Finding) -> pb.Finding:
    """Every field of a finding; for reviewers."""
    return pb.Finding(
        stage=finding.stage,
        outcome=finding.outcome,
        reason=finding.reason,
        detail=finding.detail,
        score=finding.score,
        p_value=finding.p_value,
        p_values=finding.p_values,
        seconds=finding.seconds,
    )
