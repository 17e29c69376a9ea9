"""Rules only tighten, what is worse is never judged better, and monitor mode lets no failed signature by."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.finding import Finding, GatewayReason, Outcome
from gateway.policy import DENOISING, DETECTION, SIGNATURE, Context, ServicePolicy, effective
from gateway.settings.policy import RuleConfig, StudyPolicy
from gateway.verdict import Disposition, Verdict
from policies import (
    AGREED,
    ANYTHING,
    CALM,
    DIFFERED,
    FPR,
    GREYISH,
    SIGNED,
    UNSIGNED,
    WORDS,
    findings,
    policies,
    settings_with,
    two,
)
from signing import Reason

# -- the rules --

RULES = st.lists(
    st.fixed_dictionaries(
        {"disposition": two},
        optional={
            "modality": st.sampled_from([("CT",), ("MG", "other")]),
            "source": st.sampled_from([("ct-1",), ("us-1", "ct-1")]),
            "signature": st.lists(
                st.sampled_from(["unsigned", "indeterminate", "stripped", "failed"]), min_size=1, unique=True
            ).map(tuple),
            "p_at_most": st.sampled_from([0.005, 0.02, 0.2]),
            "detectors": st.sampled_from([{"uad": 0.01}, {"uad": 0.1, "twin": 0.1}]),
            "study_held_min": st.integers(1, 3),
        },
    ).filter(lambda rule: len(rule) > 1),
    max_size=3,
).map(lambda rules: tuple(RuleConfig(name=f"rule-{number}", **rule) for number, rule in enumerate(rules)))
CONTEXTS = st.builds(
    Context,
    modality=st.sampled_from(["CT", "MG", "other"]),
    source=st.sampled_from(["ct-1", "us-1"]),
    study_held=st.integers(0, 4),
)
RULED = st.builds(lambda settings, rules: settings.model_copy(update={"rules": rules}), policies, RULES)

# Every outcome of every stage, and for each those that are at least as bad. A signature that could not be examined may
# be held where an unsigned scan is refused, since tomorrow it may be good; it is never admitted where that is not.
STANDINGS = {
    "signed": SIGNED,
    "indeterminate": Finding(SIGNATURE, Outcome.INDETERMINATE, Reason.REVOCATION_UNKNOWN),
    "unsigned": UNSIGNED,
    "stripped": Finding(SIGNATURE, Outcome.FAILED, Reason.STRIPPED),
    "failed": Finding(SIGNATURE, Outcome.FAILED, Reason.MAC_MISMATCH),
}
WORSE = {
    "signed": {"indeterminate", "unsigned", "stripped", "failed"},
    "unsigned": {"stripped", "failed"},
    "indeterminate": set(),
    "stripped": set(),
    "failed": set(),
}
P_VALUES = (0.9, 0.15, 0.03, 0.015, 0.008, 0.001)
LOST = Finding(DENOISING, Outcome.INDETERMINATE, GatewayReason.WORKER_LOST)
AGREEMENTS = {"agreed": AGREED, "differed": DIFFERED, "lost": LOST}


def _detected(p_value: float, uad: float, twin: float) -> Finding:
    suspect = p_value <= FPR
    outcome, reason = (Outcome.FAILED, GatewayReason.SUSPECT) if suspect else (Outcome.PASSED, Reason.OK)
    return Finding(DETECTION, outcome, reason, p_value=p_value, p_values={"uad": uad, "twin": twin})


@given(RULED, CONTEXTS)
@hypothesis.settings(max_examples=30)
def test_no_outcome_that_is_worse_is_judged_better(settings, context):
    """Monotone in every outcome, over every combination of the others."""
    policy = ServicePolicy(settings)

    def disposition(standing: str, p_value: float, uad: float, twin: float, agreement: str) -> Disposition:
        findings = (STANDINGS[standing], _detected(p_value, uad, twin), AGREEMENTS[agreement])
        return policy.decide(findings, context).disposition

    for one in product(STANDINGS, P_VALUES, (0.5, 0.05, 0.005), (0.5, 0.05), AGREEMENTS):
        standing, p_value, uad, twin, agreement = one
        here = disposition(*one)
        worse = [(other, p_value, uad, twin, agreement) for other in WORSE[standing]]
        worse += [(standing, lower, uad, twin, agreement) for lower in P_VALUES if lower < p_value]
        worse += [(standing, p_value, 0.005, twin, agreement), (standing, p_value, uad, 0.05, agreement)]
        worse += [(standing, p_value, uad, twin, "differed")] if agreement == "agreed" else []
        worse = [each for each in worse if each[2] <= uad and each[3] <= twin]
        assert all(disposition(*each) >= here for each in worse), one


@given(RULED, CONTEXTS, st.sampled_from(P_VALUES), st.sampled_from(P_VALUES))
def test_no_detector_lifts_an_unsigned_scan_whatever_the_rules(settings, context, p_value, own):
    policy = ServicePolicy(settings)
    detected = _detected(p_value, own, own)
    for standing in STANDINGS.values():
        alone = policy.decide([standing], context).disposition
        assert policy.decide([standing, detected, AGREED], context).disposition >= alone


@given(RULED, CONTEXTS, st.lists(findings, min_size=1, max_size=5))
def test_a_rule_only_tightens(settings, context, found):
    without = ServicePolicy(settings.model_copy(update={"rules": ()})).decide(found, context)
    verdict = ServicePolicy(settings).decide(found, context)
    assert verdict.disposition >= without.disposition
    assert verdict.rules or verdict == without


@given(RULED, CONTEXTS, st.lists(findings, min_size=1, max_size=5), findings)
def test_a_finding_more_never_escapes_a_rule(settings, context, found, another):
    policy = ServicePolicy(settings)
    if another.stage != DENOISING:
        assert policy.decide([*found, another], context).disposition >= policy.decide(found, context).disposition


@given(RULED, CONTEXTS, st.lists(findings, min_size=1, max_size=5))
def test_more_held_instances_of_the_study_never_help(settings, context, found):
    policy = ServicePolicy(settings)
    later = replace(context, study_held=context.study_held + 1)
    assert policy.decide(found, later).disposition >= policy.decide(found, context).disposition


LOUD_UAD = replace(CALM, p_values={"uad": 0.01})


@pytest.mark.parametrize(
    ("rule", "found", "context", "reason"),
    [
        ({"modality": ("MG",)}, (SIGNED, CALM), Context(modality="MG"), GatewayReason.SUSPECT),
        ({"modality": ("MG", "bare")}, (UNSIGNED, CALM), Context(modality="bare"), GatewayReason.SUSPECT),
        ({"modality": ("other",)}, (UNSIGNED, CALM), Context(modality="bare"), GatewayReason.SUSPECT),
        ({"source": ("us-1",)}, (SIGNED, CALM), Context(source="us-1"), GatewayReason.SUSPECT),
        ({"p_at_most": 0.04}, (SIGNED, GREYISH), ANYTHING, GatewayReason.SUSPECT),
        ({"detectors": {"uad": 0.04}}, (SIGNED, LOUD_UAD), ANYTHING, GatewayReason.SUSPECT),
        ({"detectors": {"uad": 0.04}}, (SIGNED, CALM), ANYTHING, GatewayReason.SUSPECT),
        ({"signature": ("unsigned",)}, (UNSIGNED, CALM), ANYTHING, Reason.UNSIGNED),
        ({"signature": ("unsigned",)}, (STANDINGS["indeterminate"],), ANYTHING, Reason.REVOCATION_UNKNOWN),
        ({"signature": ("unsigned",), "modality": ("US",)}, (UNSIGNED,), Context(modality="US"), Reason.UNSIGNED),
        ({"study_held_min": 3}, (SIGNED, CALM), Context(study_held=3), GatewayReason.SUSPECT),
    ],
)  # fmt: skip
def test_a_rule_that_matches_is_named(rule, found, context, reason):
    settings = settings_with(unsigned="unsafe_admit", indeterminate="unsafe_admit", denoise="never")
    settings = settings.model_copy(update={"rules": (RuleConfig(name="mine", disposition="quarantine", **rule),)})
    verdict = ServicePolicy(settings).decide(found, context)
    assert (verdict.disposition, verdict.reasons, verdict.rules) == (Disposition.QUARANTINE, (reason,), ("mine",))


@pytest.mark.parametrize(
    ("rule", "found", "context"),
    [
        ({"modality": ("MG",)}, (SIGNED, CALM), Context(modality="CT")),
        ({"modality": ("MG",)}, (UNSIGNED, CALM), Context(modality="bare")),
        ({"modality": ("bare",)}, (SIGNED, CALM), Context(modality="other")),
        ({"source": ("us-1",)}, (SIGNED, CALM), Context(source="ct-1")),
        ({"p_at_most": 0.02}, (SIGNED, GREYISH), ANYTHING),
        ({"p_at_most": 0.02}, (SIGNED,), ANYTHING),
        ({"signature": ("unsigned",)}, (SIGNED, CALM), ANYTHING),
        ({"signature": ("failed",)}, (UNSIGNED, CALM), ANYTHING),
        ({"signature": ("unsigned",), "modality": ("US",)}, (UNSIGNED, CALM), Context(modality="CT")),
        ({"study_held_min": 3}, (SIGNED, CALM), Context(study_held=2)),
    ],
)
def test_a_rule_that_does_not_match_says_nothing(rule, found, context):
    settings = settings_with(unsigned="unsafe_admit", denoise="never")
    settings = settings.model_copy(update={"rules": (RuleConfig(name="mine", disposition="reject", **rule),)})
    verdict = ServicePolicy(settings).decide(found, context)
    assert (verdict.disposition, verdict.rules) == (Disposition.ADMIT, ())


# -- monitor mode --


@given(RULED, CONTEXTS, st.lists(findings, min_size=1, max_size=5))
def test_monitor_mode_holds_nothing_but_failed_signatures_and_says_what_it_let_by(settings, context, found):
    strict, monitoring = ServicePolicy(settings), ServicePolicy(settings, monitor=True)
    meant, done = strict.decide(found, context), monitoring.decide(found, context)
    unsigned = {Reason.UNSIGNED, Reason.MAIN_DATASET_UNSIGNED}
    bad = any(f.stage == SIGNATURE and f.outcome is Outcome.FAILED and f.reason not in unsigned for f in found)
    if bad or meant.disposition.admitted:
        assert done == meant
    else:
        assert (done.disposition, done.unsafe, done.instead_of) == (Disposition.ADMIT, ("unsafe_monitor_until",), meant)
    assert done.meant == meant


def test_an_empty_chain_admits_nothing_in_monitor_mode_either():
    assert ServicePolicy(settings_with(), monitor=True).decide([], ANYTHING).disposition is Disposition.REJECT


# -- what a route makes of it --


@pytest.mark.parametrize(("ours", "trusts"), list(product(WORDS, repeat=2)))
def test_of_two_words_for_unsigned_the_worse_holds(ours, trusts):
    policy = effective(settings_with(unsigned=ours), trust_unsigned=trusts, has_model=True)
    assert WORDS[policy.signature.unsigned] is max(WORDS[ours], WORDS[trusts])


def test_without_a_model_nothing_asks_the_detectors():
    rules = (
        RuleConfig(name="joint", disposition="reject", p_at_most=0.5),
        RuleConfig(name="own", disposition="reject", detectors={"uad": 0.5}),
        RuleConfig(name="modality", disposition="reject", modality=("MG",)),
    )
    settings = settings_with().model_copy(
        update={"rules": rules, "study": StudyPolicy(false_discovery_rate=0.05, suspect="reject")}
    )
    policy = effective(settings, trust_unsigned="reject", has_model=False)
    assert (policy.detection, policy.study, [rule.name for rule in policy.rules]) == (None, None, ["modality"])
    assert effective(settings, trust_unsigned="reject", has_model=True).rules == rules


# -- studies --

ADMITTED, HELD, REFUSED = (
    Verdict(Disposition.ADMIT, ()),
    Verdict(Disposition.QUARANTINE, (GatewayReason.SUSPECT,)),
    Verdict(Disposition.REJECT, (Reason.MAC_MISMATCH,)),
)


def _study(instances, p_value, *, monitor=False, suspect="quarantine"):
    study = StudyPolicy(false_discovery_rate=0.05, suspect=suspect)
    policy = ServicePolicy(settings_with().model_copy(update={"study": study}), monitor)
    return policy.decide_study(instances, p_value)


@pytest.mark.parametrize(
    ("instances", "p_value", "disposition"),
    [
        ((ADMITTED, ADMITTED), 0.06, Disposition.ADMIT),
        ((ADMITTED, ADMITTED), None, Disposition.ADMIT),
        ((ADMITTED, ADMITTED), 0.05, Disposition.QUARANTINE),
        ((ADMITTED, ADMITTED), math.nan, Disposition.QUARANTINE),
        ((ADMITTED, HELD), 1.0, Disposition.QUARANTINE),
        ((ADMITTED, REFUSED), 1.0, Disposition.REJECT),
        ((ADMITTED, REFUSED), 0.01, Disposition.REJECT),
    ],
)
def test_a_study_is_its_worst_instance_or_raised_by_all_together(instances, p_value, disposition):
    assert _study(instances, p_value).disposition is disposition


def test_without_a_word_for_studies_only_the_instances_count():
    assert ServicePolicy(settings_with()).decide_study([ADMITTED], 0.0001).disposition is Disposition.ADMIT


def test_in_monitor_mode_a_study_is_what_was_done_and_says_what_was_meant():
    let_by = Verdict(Disposition.ADMIT, (), ("unsafe_monitor_until",), instead_of=HELD)
    for instances, p_value in (((ADMITTED, let_by), 1.0), ((ADMITTED, ADMITTED), 0.01)):
        verdict = _study(instances, p_value, monitor=True)
        assert (verdict.disposition, verdict.unsafe) == (Disposition.ADMIT, ("unsafe_monitor_until",))
        assert verdict.meant.disposition is Disposition.QUARANTINE
    assert _study((let_by, REFUSED), 0.01, monitor=True).disposition is Disposition.REJECT
