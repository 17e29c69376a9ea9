"""From findings to a verdict: pure, total, and the only place where anything is decided.

How a scan is judged (docs/policy.md):

(1) Each finding calls for what its key in [policy] says.
(2) Each rule in [[policy.rules]] whose conditions all hold calls for its disposition.
(3) The worst of all that was called for happens. Nothing is added up or weighed: a sum would let an attacker pay for
    one alarm with another's calm, and a detector's pass lift an unsigned scan.
(4) In monitor mode, what would be held or refused is admitted, marked and counted; a failed signature never is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from gateway.case import Case
from gateway.finding import UNEXAMINABLE, Finding, GatewayReason, Outcome
from gateway.scan import BARE, OTHER_MODALITY
from gateway.settings.policy import PolicyConfig, RuleConfig
from gateway.verdict import Disposition, Verdict
from signing import Reason

SIGNATURE = "signature"
DETECTION = "detection"
DENOISING = "denoising"
MONITOR = "unsafe_monitor_until"
"""The setting that lets a scan by in monitor mode."""

_DISPOSITION = {
    "reject": Disposition.REJECT,
    "quarantine": Disposition.QUARANTINE,
    "unsafe_admit": Disposition.ADMIT,
}
UNSIGNED = frozenset({Reason.UNSIGNED, Reason.MAIN_DATASET_UNSIGNED})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Context:
    """What a rule may ask about a scan beside what was found in it."""

    modality: str = OTHER_MODALITY
    """As the header says, bounded as in metrics."""
    source: str = ""
    """Configured name of the sender."""
    study_held: int = 0
    """Earlier instances of its study, sent as a whole, that were held or refused."""

    @classmethod
    def of(cls, case: Case) -> Context:
        """The context of an examined scan."""
        return cls(case.scan.modality, case.scan.source.name, case.study_held)


@dataclass(frozen=True, slots=True)
class ServicePolicy:
    """The policy of one route, as it is in force for one source."""

    settings: PolicyConfig
    monitor: bool = False
    """Decide and record, and admit what would be held or refused."""

    def decide(self, findings: Sequence[Finding], context: Context) -> Verdict:
        """Judge what the stages found; an empty chain admits nothing."""
        if not findings:
            return Verdict(Disposition.REJECT, (GatewayReason.NOT_RUN,))
        called_for = [*self._by_keys(findings), *self._by_rules(findings, context)]  # (1) (2)
        verdict = _worst(called_for)  # (3)
        return _let_by(verdict) if self.monitor and not _signature_failed(findings) else verdict  # (4)

    def decide_study(self, instances: Sequence[Verdict], p_value: float | None) -> Verdict:
        """The worst of a study's instances, or what [policy.study] says where all slices together are suspect.

        `p_value` is that of the slices together (`fusion.fuse`); None where no slice has one. What has been answered
        about an instance stays as it is.
        """
        study = self.settings.study
        meant = [verdict.meant for verdict in instances]
        if study is not None and p_value is not None and not p_value > study.false_discovery_rate:  # NaN is suspect
            meant.append(Verdict(_DISPOSITION[study.suspect], (GatewayReason.SUSPECT,)))
        verdict, done = _worst(meant), _worst(instances)
        return _let_by(verdict, done) if self.monitor else verdict

    # -- (1) the keys --

    def _by_keys(self, findings: Sequence[Finding]) -> Iterator[Verdict]:
        """What each finding calls for; nothing where it passed."""
        for finding in findings:
            if finding.stage == DENOISING and finding.outcome is not Outcome.INDETERMINATE:
                continue  # read with the p-value, in `_grey`
            if finding.outcome is Outcome.INDETERMINATE:
                yield self._unfinished(finding)
            elif finding.outcome is Outcome.FAILED:
                yield self._failed(finding)
            elif finding.stage == DETECTION and (grey := self._grey(finding, findings)) is not None:
                yield grey

    def _unfinished(self, finding: Finding) -> Verdict:
        """A signature that could not be examined is worth no more than none, or crashing that stage would pay."""
        if finding.reason in UNEXAMINABLE:
            verdict = self._by(finding, "unexaminable", self.settings.unexaminable)
        else:
            verdict = self._by(finding, "indeterminate", self.settings.indeterminate)
        if finding.stage == SIGNATURE and verdict.disposition.admitted:
            return self._by(finding, "signature.unsigned", self.settings.signature.unsigned)
        return verdict

    def _failed(self, finding: Finding) -> Verdict:
        """A signature that failed, or was taken away, is worth no more than none."""
        if finding.stage == SIGNATURE:
            signature = self.settings.signature
            unsigned = self._by(finding, "signature.unsigned", signature.unsigned)
            if finding.reason in UNSIGNED:
                return unsigned
            stripped = finding.reason is Reason.STRIPPED
            word = signature.stripped if stripped else signature.failed
            own = self._by(finding, "signature.stripped" if stripped else "signature.failed", word)
            return own if own.disposition >= unsigned.disposition else unsigned
        if finding.stage == DETECTION and self.settings.detection is not None:
            return self._by(finding, "detection.suspect", self.settings.detection.suspect)
        return Verdict(Disposition.REJECT, (finding.reason,))

    def _grey(self, finding: Finding, findings: Sequence[Finding]) -> Verdict | None:
        """Between the two p-values, the denoised image goes on if it is read as the raw one is (architecture 5.6)."""
        detection = self.settings.detection
        if detection is None or finding.p_value is None or not 0.0 < finding.p_value <= 1.0:  # NaN is none of these
            return Verdict(Disposition.REJECT, (GatewayReason.NOT_CALIBRATED,))
        if finding.p_value <= detection.false_positive_rate:  # whatever the stage called it
            return Verdict(_DISPOSITION[detection.suspect], (GatewayReason.SUSPECT,))
        if detection.denoise == "never" or detection.grey_p is None or finding.p_value > detection.grey_p:
            return None
        agreed = any(other.stage == DENOISING and other.outcome is Outcome.PASSED for other in findings)
        if agreed:
            return Verdict(Disposition.ADMIT_DENOISED, (GatewayReason.SUSPECT,))
        return Verdict(_DISPOSITION[detection.suspect], (GatewayReason.SUSPECT,))

    @staticmethod
    def _by(finding: Finding, setting: str, word: str) -> Verdict:
        if word.startswith("unsafe_"):
            return Verdict(_DISPOSITION[word], (), (setting,))
        return Verdict(_DISPOSITION[word], (finding.reason,))

    # -- (2) the rules --

    def _by_rules(self, findings: Sequence[Finding], context: Context) -> Iterator[Verdict]:
        """What each rule calls for whose conditions all hold."""
        for rule in self.settings.rules:
            signature = _of_standing(findings, rule)
            conditions = (
                not rule.modality or not _modalities(context).isdisjoint(rule.modality),
                not rule.source or context.source in rule.source,
                not rule.signature or signature is not None,
                rule.p_at_most is None or _any_p_at_most(findings, rule.p_at_most),
                all(_any_p_at_most(findings, limit, name) for name, limit in rule.detectors.items()),
                rule.study_held_min is None or context.study_held >= rule.study_held_min,
            )
            if all(conditions):
                reason = signature.reason if signature is not None else GatewayReason.SUSPECT
                yield Verdict(_DISPOSITION[rule.disposition], (reason,), rules=(rule.name,))


def effective(settings: PolicyConfig, *, trust_unsigned: str, has_model: bool) -> PolicyConfig:
    """The policy that a route is judged by.

    The trust policy and the service policy both say what becomes of an unsigned scan; the worse of the two words
    holds, so that an unsigned scan is admitted only where both admit it. Without a model nothing is detected, and
    rules that ask the detectors say nothing.
    """
    words = (settings.signature.unsigned, trust_unsigned)
    unsigned = max(words, key=_DISPOSITION.__getitem__)
    signature = settings.signature.model_copy(update={"unsigned": unsigned})
    if has_model:
        return settings.model_copy(update={"signature": signature})
    rules = tuple(rule for rule in settings.rules if not rule.asks_detectors)
    return settings.model_copy(update={"signature": signature, "detection": None, "study": None, "rules": rules})


# -- (3) the worst --


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    """The gravest of several verdicts, with the reasons and rules of all that are as grave."""
    worst = max((verdict.disposition for verdict in verdicts), default=Disposition.ADMIT)
    gravest = [verdict for verdict in verdicts if verdict.disposition is worst]
    return Verdict(
        worst,
        _distinct(reason for verdict in gravest for reason in verdict.reasons),
        _distinct(setting for verdict in verdicts for setting in verdict.unsafe) if worst.admitted else (),
        _distinct(rule for verdict in gravest for rule in verdict.rules),
    )


def _distinct(values: Iterable[T]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(values))


# -- (4) monitor mode --

_ADMITTED = Verdict(Disposition.ADMIT, ())


def _let_by(meant: Verdict, done: Verdict = _ADMITTED) -> Verdict:
    """What is done instead of what was meant, where that would hold or refuse; the verdict keeps both."""
    if meant.disposition.admitted or meant.disposition <= done.disposition:
        return meant
    return replace(done, unsafe=(MONITOR,) if done.disposition.admitted else (), instead_of=meant)


def _signature_failed(findings: Sequence[Finding]) -> bool:
    """Whether a signature is there and wrong, or was taken away: no monitor mode lets that by."""
    return any(
        finding.stage == SIGNATURE and finding.outcome is Outcome.FAILED and finding.reason not in UNSIGNED
        for finding in findings
    )


# -- conditions of rules; what is not known counts as holding, or a crash would pay --


def _modalities(context: Context) -> frozenset[str]:
    """The words of a rule that hold for a scan's modality: what came without a header is also one of the others."""
    return frozenset({context.modality, OTHER_MODALITY} if context.modality == BARE else {context.modality})


def _of_standing(findings: Sequence[Finding], rule: RuleConfig) -> Finding | None:
    """The signature finding that the rule speaks of."""
    return next((f for f in findings if not _standing(f).isdisjoint(rule.signature)), None)


def _standing(finding: Finding) -> frozenset[str]:
    """The words of a rule that hold for a signature finding; none for one that passed."""
    if finding.stage != SIGNATURE or finding.outcome is Outcome.PASSED:
        return frozenset()
    if finding.outcome is Outcome.INDETERMINATE:
        return frozenset({"unsigned", "indeterminate"})
    if finding.reason in UNSIGNED:
        return frozenset({"unsigned"})
    return frozenset({"unsigned", "stripped" if finding.reason is Reason.STRIPPED else "failed"})


def _any_p_at_most(findings: Sequence[Finding], limit: float, detector: str | None = None) -> bool:
    """Whether the joint p-value, or one detector's own, is at most this or missing."""
    for finding in findings:
        if finding.stage == DETECTION:
            p_value = finding.p_value if detector is None else finding.p_values.get(detector)
            if p_value is None or not p_value > limit:  # NaN is not above it
                return True
    return False
