"""Verifies the digital signatures of an object against a trust policy (PS3.15 C, PS3.3 C.12.1.1.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from cryptography import x509

from signing.certificates import CACHED_MAX, algorithm, fingerprint
from signing.dictionary import PIXEL_DATA, SOP_CLASS_UID, name
from signing.elements import Elements
from signing.errors import DicomError, SignatureError
from signing.fragments import check_structure
from signing.mac import TIMESTAMP, TIMESTAMP_TYPE, Examined, Examiner, locate
from signing.policy import AllowedSigner, Binding
from signing.profiles import profiles, strongest
from signing.reasons import Reason
from signing.report import CHECKS, Identity, Outcome, SignatureReport, checks_not_run, worst
from signing.timestamp import CLOCK_SKEW, Token, TokenError, read_token
from signing.trust import Problem, Trust, is_timestamping_only
from signing.verified import VerifiedSignature
from signing.view import VerifiedView, require_matching_meta

_SOURCE_FACTS = {"manufacturer": 0x00080070, "model": 0x00081090, "serial": 0x00181000, "modality": 0x00080060}
_PIXELS = (0x7FE00008, 0x7FE00009, PIXEL_DATA)
_CLAIMS_OF_MAC = frozenset((Reason.MAC_PARAMETERS_UNSIGNED, Reason.DATA_ELEMENTS_SIGNED_MISMATCH))


@dataclass(frozen=True, slots=True)
class Source:
    """Who handed the object in."""

    calling_ae: str | None = None
    tls_subject: str | None = None
    enrolled: bool = False
    """It is known to sign: without a signature, its object was stripped."""


def verify(elements: Elements, trust: Trust, *, at: datetime, source: Source | None = None) -> VerifiedSignature:
    """Verify an object, in the order (1) locate (2) examine (3) judge (4) decide.

    Args:
        elements: the object as walked.
        trust: policy, roots and revocation material.
        at: when the object was received; certificates are judged at this time unless a timestamp proves an earlier.
        source: where it came from, if that is known.

    Raises:
        SignatureError: nothing in it may be believed; says why.
    """
    if at.tzinfo is None:
        raise ValueError("`at` needs a time zone")
    try:
        located = locate(elements)  # (1)
    except DicomError as error:
        raise SignatureError(error.reason, error.detail, _crypto_failed()) from error
    if not located:
        _require_meta(elements, checks_not_run(), ())
        stripped = source is not None and source.enrolled
        raise SignatureError(Reason.STRIPPED if stripped else Reason.UNSIGNED, "no digital signature", checks_not_run())

    examiner = Examiner(elements)
    examined = [examiner.examine(each) for each in located]  # (2)
    judge = _Judge(elements, trust, at, source)
    judged = [judge.judge(each) for each in examined]  # (3)
    return _decide(elements, judged, source)  # (4)


@dataclass(frozen=True, slots=True)
class _Judged:
    examined: Examined
    report: SignatureReport
    enrolled: bool
    """By a signer whom the policy knows, so that its being broken counts against the object."""


def _decide(elements: Elements, judged: list[_Judged], source: Source | None) -> VerifiedSignature:
    """At least one main signature must be good, and none of an enrolled signer's may be broken."""
    reports = tuple(each.report for each in judged)
    main = [each for each in judged if each.report.path == ""]
    if not main:
        stripped = source is not None and source.enrolled
        reason = Reason.STRIPPED if stripped else Reason.MAIN_DATASET_UNSIGNED
        raise SignatureError(reason, "only items inside sequences are signed", checks_not_run(), reports)
    _require_meta(elements, _shown(main), reports)

    accepted = next((each for each in main if each.report.reason is Reason.OK), None)
    broken = [each.report for each in judged if not each.examined.intact and (each.enrolled or not accepted)]
    ambiguous = [each.report for each in main if each.report.reason in _OBJECT_IS_BROKEN]
    if accepted is None or broken or ambiguous:
        against = [*broken, *ambiguous] if accepted else [each.report for each in main]
        shown = worst(against)
        raise SignatureError(
            shown.reason,
            shown.detail,
            shown.checks,
            reports,
            indeterminate=str(Outcome.FAILED) not in shown.checks.values(),
        )
    view = VerifiedView.of_signed(elements, accepted.examined.covered)
    return VerifiedSignature(accepted.report, reports, view, accepted.examined.digest)


_OBJECT_IS_BROKEN = frozenset((Reason.MALFORMED, Reason.MAC_PARAMETERS_AMBIGUOUS))


class _Judge:
    """Applies the trust policy to examined signatures of one object."""

    def __init__(self, elements: Elements, trust: Trust, at: datetime, source: Source | None) -> None:
        self._elements, self._trust, self._at, self._source = elements, trust, at, source
        self._policy = trust.policy

    def judge(self, found: Examined) -> _Judged:
        """Everything that stands against one signature."""
        problems: list[Problem] = []
        for reason, detail in found.refused:
            problems.append(Problem("coverage" if reason in _CLAIMS_OF_MAC else "crypto", reason, detail))
        token: Token | None = None
        enrolled = False
        if found.certificate is not None:
            token, stamp_problems = self._timestamp(found)
            moment = self._at if token is None else token.time
            problems += stamp_problems
            signer_problems = self._trust.judge(found.certificate, moment, self._at)
            problems += signer_problems
            known = not any(problem.reason is Reason.UNTRUSTED for problem in signer_problems)
            enrolled = known and (self._policy.allowed_signers is None or bool(self._entries(found)))
            if known:
                problems += self._allowed(found)
        if found.intact:
            problems += self._claims(found, token)
        return _Judged(found, self._report(found, token, problems), enrolled)

    def _claims(self, found: Examined, token: Token | None) -> Iterator[Problem]:
        """What an intact signature covers, and whether that is what the policy asks for."""
        if found.mac not in self._policy.mac:
            yield Problem("signer", Reason.WEAK_MAC, f"{found.mac} is not allowed")
        if found.located.path:
            return
        view = VerifiedView.of_signed(self._elements, found.covered)
        try:
            check_structure(view, self._elements.transfer_syntax)
        except SignatureError as error:
            yield Problem("coverage", error.reason, error.detail)
        yield from self._coverage(found)
        try:
            yield from self._binding(found, view)
        except DicomError as error:
            yield Problem("binding", Reason.BINDING_MISMATCH, error.detail)
        yield from self._freshness(found, token)

    def _coverage(self, found: Examined) -> Iterator[Problem]:
        profile = profiles()[self._policy.required_profile]
        covered = {element.tag for element in found.covered}
        missing = profile.uncovered(self._elements, covered)
        if missing is not None:
            present = "unsigned" if missing in self._elements else "absent"
            yield Problem("coverage", Reason.REQUIRED_ATTRIBUTE_UNSIGNED, f"{name(missing)} is {present}")
        stray = profile.stray(self._elements, covered)
        if stray is not None and self._policy.unsigned_attributes == "reject":
            yield Problem("coverage", Reason.UNSIGNED_ATTRIBUTE_PRESENT, f"{name(stray)} is present, and unsigned")

    def _timestamp(self, found: Examined) -> tuple[Token | None, list[Problem]]:
        """A token that is there must be right, whatever the policy says; None where it proves nothing."""
        item = found.located.item
        if TIMESTAMP not in item and TIMESTAMP_TYPE not in item:
            if self._policy.timestamp == "required":
                return None, [Problem("timestamp", Reason.TIMESTAMP_MISSING, "there is no time-stamp token")]
            return None, []
        try:
            if item.text(TIMESTAMP_TYPE) != "CMS_TSP":
                raise TokenError(f"{name(TIMESTAMP_TYPE)} is not CMS_TSP")
            token = read_token(item.value(TIMESTAMP), found.signature, self._trust.intermediates)
            if token.time > self._at + CLOCK_SKEW:
                raise TokenError("the token is from the future")
            if not is_timestamping_only(token.authority):
                raise TokenError("its signer is not certified for time stamping alone")
        except (TokenError, DicomError) as error:
            detail = error.detail if isinstance(error, DicomError) else str(error)
            return None, [Problem("timestamp", Reason.TIMESTAMP_INVALID, detail)]
        problems = self._trust.judge_chain(token.authority, token.time, self._at, token.certificates)
        unknown = [problem for problem in problems if problem.reason is Reason.REVOCATION_UNKNOWN]
        if all(map(self._trust.tolerates, problems)):
            return token, []
        if len(unknown) == len(problems):
            return None, [Problem("timestamp", Reason.REVOCATION_UNKNOWN, unknown[0].detail)]
        return None, [Problem("timestamp", Reason.TIMESTAMP_INVALID, f"its authority: {problems[0].detail}")]

    def _entries(self, found: Examined) -> list[AllowedSigner]:
        assert found.certificate is not None
        covered = VerifiedView.of_signed(self._elements, found.covered)
        try:
            sop_class = covered.uid(SOP_CLASS_UID)
        except DicomError:
            sop_class = None
        return [entry for entry in self._policy.allowed_signers or () if entry.matches(found.certificate, sop_class)]

    def _allowed(self, found: Examined) -> Iterator[Problem]:
        if self._policy.allowed_signers is None:
            return
        entries = self._entries(found)
        if not entries:
            yield Problem("signer", Reason.SIGNER_NOT_ALLOWED, "the signer is not on the list of allowed signers")
        elif all(entry.only_additional for entry in entries) and any(tag in self._elements for tag in _PIXELS):
            yield Problem("signer", Reason.SIGNER_NOT_ALLOWED, "the signer may only add a signature to a signed image")

    def _binding(self, found: Examined, view: VerifiedView) -> Iterator[Problem]:
        """The bindings that speak of this source, or of what the signed attributes say of it, must admit the signer."""
        if not self._policy.bindings:
            return
        assert found.certificate is not None
        applying = [binding for binding in self._policy.bindings if self._applies(binding, view)]
        if not applying:
            yield Problem("binding", Reason.BINDING_MISMATCH, "no binding speaks of this source")
        elif not all(binding.admits(found.certificate) for binding in applying):
            yield Problem("binding", Reason.BINDING_MISMATCH, "the signer is not one of those bound to this source")

    def _applies(self, binding: Binding, view: VerifiedView) -> bool:
        """An object examined away from any connection has no caller, so nothing is asked of one."""
        if self._source is not None:
            for fact in ("calling_ae", "tls_subject"):
                wanted = getattr(binding, fact)
                if wanted is not None and wanted != getattr(self._source, fact):
                    return False
        for fact, tag in _SOURCE_FACTS.items():
            wanted = getattr(binding, fact)
            if wanted is not None and wanted != view.text(tag):
                return False
        return True

    def _freshness(self, found: Examined, token: Token | None) -> Iterator[Problem]:
        if not self._policy.age_s_max:
            return
        signed_at = token.time if token is not None else found.signed_at
        oldest = self._at - timedelta(seconds=self._policy.age_s_max)
        if signed_at is None or signed_at < oldest:
            yield Problem("freshness", Reason.TOO_OLD, f"signed more than {self._policy.age_s_max} seconds ago")
        elif signed_at > self._at + CLOCK_SKEW:
            yield Problem("freshness", Reason.NOT_YET_VALID, "signed in the future")

    def _report(self, found: Examined, token: Token | None, problems: list[Problem]) -> SignatureReport:
        container, certificate = found.located.container, found.certificate
        covered = tuple(element.tag for element in found.covered)
        covered_set = frozenset(covered)
        counting = [problem for problem in problems if not self._trust.tolerates(problem)]
        first = min(counting, key=lambda problem: problem.reason.precedence, default=None)
        profile = strongest(container, covered_set) if found.intact else "none"
        return SignatureReport(
            path=found.located.path,
            uid=found.uid,
            profile=profile,
            purpose=found.purpose,
            signer=None if certificate is None else _identity(certificate),
            algorithm=algorithm(certificate) if certificate is not None else "",
            mac=found.mac,
            signed_at=found.signed_at,
            timestamp=None if token is None else token.time,
            covered_tags=covered,
            unsigned_tags=tuple(element.tag for element in container if element.tag not in covered_set),
            checks=self._checks(found, token, problems),
            reason=Reason.OK if first is None else first.reason,
            detail="" if first is None else first.detail,
        )

    def _checks(self, found: Examined, token: Token | None, problems: list[Problem]) -> dict[str, str]:
        """One outcome a check: what could not be asked was not run."""
        known = found.certificate is not None
        chained = known and not any(problem.reason is Reason.UNTRUSTED for problem in problems)
        ran = {
            "crypto": True,
            "coverage": found.intact,
            "signer": chained,
            "chain": known,
            "revocation": chained and self._policy.revocation != "unsafe_off",
            "timestamp": token is not None,
            "binding": found.intact and bool(self._policy.bindings),
            "freshness": found.intact and self._policy.age_s_max > 0,
        }
        checks = {check: str(Outcome.PASSED if ran[check] else Outcome.NOT_RUN) for check in CHECKS}
        for problem in sorted(problems, key=lambda problem: problem.reason is not Reason.REVOCATION_UNKNOWN):
            unknown = problem.reason is Reason.REVOCATION_UNKNOWN
            checks[problem.check] = str(Outcome.INDETERMINATE if unknown else Outcome.FAILED)
        return checks


@lru_cache(maxsize=CACHED_MAX)
def _identity(certificate: x509.Certificate) -> Identity:
    subject, issuer = certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()
    return Identity(subject, issuer, fingerprint(certificate))


def _require_meta(elements: Elements, checks: dict[str, str], reports: tuple[SignatureReport, ...]) -> None:
    try:
        require_matching_meta(elements)
    except DicomError as error:
        raise SignatureError(error.reason, error.detail, {**checks, "coverage": "failed"}, reports) from error


def _shown(main: list[_Judged]) -> dict[str, str]:
    return dict(main[0].report.checks)


def _crypto_failed() -> dict[str, str]:
    return {**checks_not_run(), "crypto": str(Outcome.FAILED)}
