"""The policy is total, fails closed, and no observation can buy another off."""

from __future__ import annotations

import math
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.finding import UNEXAMINABLE, Finding, GatewayReason, Outcome
from gateway.policy import DENOISING, DETECTION, SIGNATURE, ServicePolicy
from gateway.verdict import Disposition
from policies import (
    AGREED,
    ANYTHING,
    CALM,
    DIFFERED,
    FPR,
    GREY,
    GREYISH,
    SIGNED,
    SUSPECT,
    UNSIGNED,
    WORDS,
    findings,
    policies,
    settings_with,
)
from signing import Reason


def _decide(*findings: Finding, **words: object):
    return ServicePolicy(settings_with(**words)).decide(findings, ANYTHING)  # type: ignore[arg-type]


# -- properties --


@given(policies, st.lists(findings, max_size=5))
def test_every_list_of_findings_has_a_verdict(settings, found):
    verdict = ServicePolicy(settings).decide(found, ANYTHING)
    assert (verdict.disposition is Disposition.ADMIT) == (not verdict.reasons)
    assert verdict.disposition.admitted or not verdict.unsafe


@given(policies, st.lists(findings, min_size=1, max_size=5), findings)
def test_a_finding_more_never_improves_the_disposition(settings, found, another):
    """The one exception is agreement of the denoised reading, which is what the grey zone waits for."""
    policy = ServicePolicy(settings)
    before, after = policy.decide(found, ANYTHING).disposition, policy.decide([*found, another], ANYTHING).disposition
    agrees = another.stage == DENOISING and another.outcome is Outcome.PASSED
    if not agrees:
        assert after >= before
    elif before > Disposition.ADMIT:
        assert after > Disposition.ADMIT


@given(policies, st.lists(findings, min_size=1, max_size=5))
def test_agreement_lifts_nothing_but_a_grey_scan(settings, found):
    policy = ServicePolicy(settings)
    others = [finding for finding in found if finding.stage != DENOISING]
    grey = any(
        finding.stage == DETECTION and finding.outcome is Outcome.PASSED and finding.p_value is not None
        and FPR < finding.p_value <= GREY
        for finding in others
    )  # fmt: skip
    if others and not grey:
        assert policy.decide([*others, AGREED], ANYTHING).disposition >= policy.decide(others, ANYTHING).disposition


@given(policies, st.lists(findings, min_size=1, max_size=5), st.randoms())
def test_the_order_of_findings_does_not_matter(settings, found, random):
    policy = ServicePolicy(settings)
    shuffled = list(found)
    random.shuffle(shuffled)
    assert policy.decide(found, ANYTHING).disposition is policy.decide(shuffled, ANYTHING).disposition


@given(policies, findings.filter(lambda finding: finding.outcome is not Outcome.PASSED))
def test_what_did_not_pass_is_admitted_only_by_a_named_unsafe_setting(settings, found):
    """The denoising stage alone says nothing: it is read with the p-value."""
    verdict = ServicePolicy(settings).decide([SIGNED, found], ANYTHING)
    if verdict.disposition.admitted and found.stage != DENOISING:
        assert verdict.unsafe
        assert verdict.reasons == ()


@given(policies, st.floats(min_value=FPR, max_value=1.0, exclude_min=True))
def test_a_detectors_pass_never_lifts_an_unsigned_scan(settings, p_value):
    policy = ServicePolicy(settings)
    calm = Finding(DETECTION, Outcome.PASSED, Reason.OK, p_value=p_value)
    assert policy.decide([UNSIGNED, calm], ANYTHING).disposition >= policy.decide([UNSIGNED], ANYTHING).disposition


@given(policies, st.lists(findings, min_size=1, max_size=5))
def test_a_bad_signature_or_a_stripped_one_is_never_admitted(settings, found):
    unsigned = {Reason.UNSIGNED, Reason.MAIN_DATASET_UNSIGNED}
    bad = any(f.stage == SIGNATURE and f.outcome is Outcome.FAILED and f.reason not in unsigned for f in found)
    if bad:
        assert not ServicePolicy(settings).decide(found, ANYTHING).disposition.admitted


# -- the table --


def test_an_empty_chain_admits_nothing():
    verdict = _decide(indeterminate="unsafe_admit", unexaminable="unsafe_admit", unsigned="unsafe_admit")
    assert (verdict.disposition, verdict.reasons) == (Disposition.REJECT, (GatewayReason.NOT_RUN,))


@pytest.mark.parametrize(("word", "reason"), list(product(["reject", "quarantine", "unsafe_admit"], Reason)))
def test_unsigned_is_what_its_word_says_and_nothing_else_is_unsigned(word, reason):
    verdict = _decide(Finding(SIGNATURE, Outcome.FAILED, reason), CALM, unsigned=word)
    if reason in (Reason.UNSIGNED, Reason.MAIN_DATASET_UNSIGNED):
        assert verdict.disposition is WORDS[word]
        assert verdict.unsafe == (("signature.unsigned",) if word == "unsafe_admit" else ())
    else:
        assert verdict.disposition is Disposition.REJECT
        assert verdict.reasons == (reason,)


@pytest.mark.parametrize(("failed", "stripped"), list(product(["reject", "quarantine"], repeat=2)))
def test_failed_and_stripped_have_words_of_their_own(failed, stripped):
    words = {"failed": failed, "stripped": stripped, "unsigned": "unsafe_admit"}
    changed = Finding(SIGNATURE, Outcome.FAILED, Reason.MAC_MISMATCH)
    taken = Finding(SIGNATURE, Outcome.FAILED, Reason.STRIPPED)
    assert _decide(changed, CALM, **words).disposition is WORDS[failed]
    assert _decide(taken, CALM, **words).disposition is WORDS[stripped]


@pytest.mark.parametrize(("word", "reason"), list(product(["reject", "quarantine", "unsafe_admit"], GatewayReason)))
@pytest.mark.parametrize("stage", ["preprocess", DETECTION, DENOISING])
def test_indeterminate_and_unexaminable_are_told_apart_by_reason(word, reason, stage):
    found = Finding(stage, Outcome.INDETERMINATE, reason)
    unexaminable = reason in UNEXAMINABLE
    other = "quarantine" if word == "reject" else "reject"
    words = (
        {"unexaminable": word, "indeterminate": other}
        if unexaminable
        else {"unexaminable": other, "indeterminate": word}
    )
    verdict = _decide(SIGNED, found, **words)
    assert verdict.disposition is WORDS[word]
    setting = "unexaminable" if unexaminable else "indeterminate"
    assert verdict.unsafe == ((setting,) if word == "unsafe_admit" else ())


@pytest.mark.parametrize(("word", "unsigned"), list(product(["reject", "quarantine", "unsafe_admit"], repeat=2)))
@pytest.mark.parametrize("reason", [GatewayReason.DETECTOR_ERROR, GatewayReason.TIMEOUT, Reason.REVOCATION_UNKNOWN])
def test_a_signature_that_could_not_be_examined_is_worth_no_more_than_none(word, unsigned, reason):
    verdict = _decide(Finding(SIGNATURE, Outcome.INDETERMINATE, reason), CALM, indeterminate=word, unsigned=unsigned)
    assert verdict.disposition is WORDS[unsigned if word == "unsafe_admit" else word]
    assert verdict.unsafe == (("signature.unsigned",) if word == unsigned == "unsafe_admit" else ())


@pytest.mark.parametrize(
    ("found", "denoise", "disposition", "reasons"),
    [
        ((SIGNED, CALM), "if_agree", Disposition.ADMIT, ()),
        ((SIGNED, CALM, DIFFERED), "if_agree", Disposition.ADMIT, ()),
        ((SIGNED, GREYISH, AGREED), "if_agree", Disposition.ADMIT_DENOISED, (GatewayReason.SUSPECT,)),
        ((SIGNED, GREYISH, DIFFERED), "if_agree", Disposition.QUARANTINE, (GatewayReason.SUSPECT,)),
        ((SIGNED, GREYISH), "if_agree", Disposition.QUARANTINE, (GatewayReason.SUSPECT,)),
        ((SIGNED, GREYISH), "never", Disposition.ADMIT, ()),
        ((SIGNED, SUSPECT), "never", Disposition.QUARANTINE, (GatewayReason.SUSPECT,)),
        ((SIGNED, SUSPECT, AGREED), "if_agree", Disposition.QUARANTINE, (GatewayReason.SUSPECT,)),
    ],
)
def test_the_grey_zone(found, denoise, disposition, reasons):
    verdict = _decide(*found, denoise=denoise)
    assert (verdict.disposition, verdict.reasons) == (disposition, reasons)


@pytest.mark.parametrize(
    ("p_value", "disposition"),
    [
        (math.nextafter(GREY, 1), Disposition.ADMIT),
        (GREY, Disposition.ADMIT_DENOISED),
        (math.nextafter(FPR, 1), Disposition.ADMIT_DENOISED),
        (FPR, Disposition.QUARANTINE),
        (0.0, Disposition.REJECT),
        (-1.0, Disposition.REJECT),
        (1.5, Disposition.REJECT),
        (math.nan, Disposition.REJECT),
        (None, Disposition.REJECT),
    ],
)
def test_a_p_value_decides_at_its_bounds_and_only_if_it_is_one(p_value, disposition):
    """A stage that compares NaN with a threshold finds "not below": that must not read as a pass."""
    found = Finding(DETECTION, Outcome.PASSED, Reason.OK, p_value=p_value)
    assert _decide(SIGNED, found, AGREED).disposition is disposition


def test_detection_without_a_detection_policy_admits_nothing():
    verdict = _decide(SIGNED, CALM, detection=False)
    assert (verdict.disposition, verdict.reasons) == (Disposition.REJECT, (GatewayReason.NOT_CALIBRATED,))


def test_the_gravest_reasons_alone_are_given():
    changed = Finding(SIGNATURE, Outcome.FAILED, Reason.MAC_MISMATCH)
    assert _decide(changed, SUSPECT).reasons == (Reason.MAC_MISMATCH,)
    held = _decide(changed, SUSPECT, failed="quarantine", unsigned="quarantine")
    assert held.reasons == (Reason.MAC_MISMATCH, GatewayReason.SUSPECT)


def test_an_unsafe_setting_that_did_not_admit_is_not_counted():
    assert _decide(UNSIGNED, SUSPECT, unsigned="unsafe_admit").unsafe == ()
    assert _decide(UNSIGNED, CALM, unsigned="unsafe_admit").unsafe == ("signature.unsigned",)
    assert _decide(UNSIGNED, GREYISH, AGREED, unsigned="unsafe_admit").unsafe == ("signature.unsigned",)
