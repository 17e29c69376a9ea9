"""From findings to a verdict: pure, total, and the only place where anything is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.finding import UNEXAMINABLE, Finding, GatewayReason, Outcome
from gateway.settings.policy import PolicyConfig
from gateway.verdict import Disposition, Verdict
from signing import Reason

SIGNATURE = "signature"
DETECTION = "detection"
DENOISING = "denoising"

_DISPOSITION = {
    "reject": Disposition.REJECT,
    "quarantine": Disposition.QUARANTINE,
    "unsafe_admit": Disposition.ADMIT,
}
_UNSIGNED = frozenset({Reason.UNSIGNED, Reason.MAIN_DATASET_UNSIGNED})


@dataclass(frozen=True, slots=True)
class _Judgement:
    disposition: Disposition
    reason: Reason | GatewayReason
    setting: str | None = None
    """The `unsafe_…` setting that let the finding by, where one did."""


@dataclass(frozen=True, slots=True)
class ServicePolicy:
    """The worst disposition that any finding calls for; a detector's pass never lifts an unsigned scan.

    Each finding is judged on its own and the gravest judgement wins, so no observation can outweigh another:
    a fused sum would let an attacker pay for one alarm with another's calm.
    """

    settings: PolicyConfig

    def decide(self, findings: Sequence[Finding]) -> Verdict:
        """Judge what the stages found; an empty chain admits nothing."""
        if not findings:
            return Verdict(Disposition.REJECT, (GatewayReason.NOT_RUN,))
        judged = [judgement for finding in findings if (judgement := self._judge(finding, findings)) is not None]
        worst = max((judgement.disposition for judgement in judged), default=Disposition.ADMIT)
        gravest = [judgement for judgement in judged if judgement.disposition == worst]
        reasons = () if worst is Disposition.ADMIT else tuple(dict.fromkeys(each.reason for each in gravest))
        unsafe = tuple(dict.fromkeys(each.setting for each in judged if each.setting)) if worst.admitted else ()
        return Verdict(worst, reasons, unsafe)

    def _judge(self, finding: Finding, findings: Sequence[Finding]) -> _Judgement | None:
        """What one finding calls for; None where it calls for nothing."""
        if finding.stage == DENOISING and finding.outcome is not Outcome.INDETERMINATE:
            return None  # read with the p-value, in `_grey`
        if finding.outcome is Outcome.INDETERMINATE:
            return self._unfinished(finding)
        if finding.outcome is Outcome.FAILED:
            return self._failed(finding)
        return self._grey(finding, findings) if finding.stage == DETECTION else None

    def _unfinished(self, finding: Finding) -> _Judgement:
        """A signature that could not be examined is worth no more than none, or crashing that stage would pay."""
        if finding.reason in UNEXAMINABLE:
            judgement = self._by(finding, "unexaminable", self.settings.unexaminable)
        else:
            judgement = self._by(finding, "indeterminate", self.settings.indeterminate)
        if finding.stage == SIGNATURE and judgement.disposition.admitted:
            return self._by(finding, "signature.unsigned", self.settings.signature.unsigned)
        return judgement

    def _failed(self, finding: Finding) -> _Judgement:
        if finding.stage == SIGNATURE:
            signature = self.settings.signature
            if finding.reason in _UNSIGNED:
                return self._by(finding, "signature.unsigned", signature.unsigned)
            if finding.reason is Reason.STRIPPED:
                return self._by(finding, "signature.stripped", signature.stripped)
            return self._by(finding, "signature.failed", signature.failed)
        if finding.stage == DETECTION and self.settings.detection is not None:
            return self._by(finding, "detection.suspect", self.settings.detection.suspect)
        return _Judgement(Disposition.REJECT, finding.reason)

    def _grey(self, finding: Finding, findings: Sequence[Finding]) -> _Judgement | None:
        """Between the two p-values, the denoised image goes on if it is read as the raw one is (architecture 5.6)."""
        detection = self.settings.detection
        if detection is None or finding.p_value is None or not 0.0 < finding.p_value <= 1.0:  # NaN is none of these
            return _Judgement(Disposition.REJECT, GatewayReason.NOT_CALIBRATED)
        if finding.p_value <= detection.false_positive_rate:  # whatever the stage called it
            return _Judgement(_DISPOSITION[detection.suspect], GatewayReason.SUSPECT)
        if detection.denoise == "never" or detection.grey_p is None or finding.p_value > detection.grey_p:
            return None
        agreed = any(other.stage == DENOISING and other.outcome is Outcome.PASSED for other in findings)
        if agreed:
            return _Judgement(Disposition.ADMIT_DENOISED, GatewayReason.SUSPECT)
        return _Judgement(_DISPOSITION[detection.suspect], GatewayReason.SUSPECT)

    @staticmethod
    def _by(finding: Finding, setting: str, word: str) -> _Judgement:
        unsafe = setting if word.startswith("unsafe_") else None
        return _Judgement(_DISPOSITION[word], finding.reason, unsafe)
