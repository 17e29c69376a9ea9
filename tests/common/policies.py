"""Service policies and findings for tests of what follows from what; hypothesis draws both."""

from __future__ import annotations

from hypothesis import strategies as st

from gateway.finding import Finding, GatewayReason, Outcome
from gateway.policy import DENOISING, DETECTION, SIGNATURE, Context
from gateway.settings.policy import DetectionPolicy, PolicyConfig, SignaturePolicy
from gateway.verdict import Disposition
from signing import Reason

FPR, GREY = 0.01, 0.05
ANYTHING = Context()
WORDS = {"reject": Disposition.REJECT, "quarantine": Disposition.QUARANTINE, "unsafe_admit": Disposition.ADMIT}

three = st.sampled_from(["reject", "quarantine", "unsafe_admit"])
two = st.sampled_from(["reject", "quarantine"])


def settings_with(
    *, indeterminate="quarantine", unexaminable="quarantine", failed="reject", unsigned="reject", stripped="reject",
    suspect="quarantine", denoise="if_agree", detection=True,
) -> PolicyConfig:  # fmt: skip
    grey_p = GREY if denoise == "if_agree" else None
    return PolicyConfig(
        indeterminate=indeterminate,
        unexaminable=unexaminable,
        signature=SignaturePolicy(failed=failed, unsigned=unsigned, stripped=stripped),
        detection=DetectionPolicy(false_positive_rate=FPR, suspect=suspect, denoise=denoise, grey_p=grey_p)
        if detection
        else None,
    )


policies = st.builds(
    settings_with,
    indeterminate=three,
    unexaminable=three,
    failed=two,
    unsigned=three,
    stripped=two,
    suspect=two,
    denoise=st.sampled_from(["never", "if_agree"]),
    detection=st.booleans(),
)
findings = st.builds(
    Finding,
    stage=st.sampled_from([SIGNATURE, "preprocess", DETECTION, DENOISING, "another"]),
    outcome=st.sampled_from(Outcome),
    reason=st.sampled_from([*Reason, *GatewayReason]),
    p_value=st.none() | st.floats(allow_nan=True) | st.sampled_from([FPR, GREY, 0.5, 1.0]),
)

SIGNED = Finding(SIGNATURE, Outcome.PASSED, Reason.OK)
UNSIGNED = Finding(SIGNATURE, Outcome.FAILED, Reason.UNSIGNED)
CALM = Finding(DETECTION, Outcome.PASSED, Reason.OK, p_value=0.9)
GREYISH = Finding(DETECTION, Outcome.PASSED, Reason.OK, p_value=0.03)
SUSPECT = Finding(DETECTION, Outcome.FAILED, GatewayReason.SUSPECT, p_value=0.002)
AGREED = Finding(DENOISING, Outcome.PASSED, Reason.OK)
DIFFERED = Finding(DENOISING, Outcome.FAILED, GatewayReason.SUSPECT)
