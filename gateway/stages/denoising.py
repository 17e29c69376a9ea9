"""Whether noise carries the answer: compares what the model says of the image and of its denoised forms."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gateway.case import Case
from gateway.deadline import Deadline
from gateway.engine.engine import GreyZone
from gateway.finding import Finding, GatewayReason, Outcome
from gateway.policy import DENOISING
from gateway.profile import Profile
from signing import Reason


class DenoisingStage:
    """Passes where every denoised image is read as the raw one; looked at in the grey zone only.

    Read as: the same class, or for a multilabel model the same set of classes at a probability of one half. The
    policy alone decides what follows (`denoise = "if_agree"`). The finding's score is how many denoised images are read
    otherwise; it has none where nothing was looked at.
    """

    name = DENOISING
    requires = frozenset({"evidence"})
    provides: frozenset[str] = frozenset()

    def __init__(self, profile: Profile, *, false_positive_rate: float, grey_p: float) -> None:
        """Look at p-values above `false_positive_rate` up to `grey_p`, as the policy does."""
        self._profile = profile
        self._grey = GreyZone(false_positive_rate, grey_p)

    def run(self, case: Case, deadline: Deadline) -> Case:
        """See `stage.Stage.run`."""
        assert case.evidence is not None
        evidence = case.evidence
        if not self._grey.holds(evidence.p_value):
            side = "above" if evidence.p_value > self._grey.up_to else "below"
            detail = f"not looked at: p lies {side} the grey zone"
            return case.with_finding(Finding(self.name, Outcome.PASSED, Reason.OK, detail))
        if not evidence.denoised_outputs or evidence.denoised is None:
            detail = "the detectors gave no denoised image for a p in the grey zone"
            return case.with_finding(Finding(self.name, Outcome.INDETERMINATE, GatewayReason.DETECTOR_ERROR, detail))
        raw = _named(evidence.output, self._profile)
        others = [name for name, output in evidence.denoised_outputs.items() if _named(output, self._profile) != raw]
        if others:
            detail = f"read otherwise once denoised by {', '.join(sorted(others))}"
            differ = float(len(others))
            return case.with_finding(Finding(self.name, Outcome.FAILED, GatewayReason.SUSPECT, detail, score=differ))
        detail = f"read alike once denoised by {', '.join(sorted(evidence.denoised_outputs))}"
        return case.with_finding(Finding(self.name, Outcome.PASSED, Reason.OK, detail, score=0.0))


def _named(logits: NDArray[np.float32], profile: Profile) -> frozenset[int]:
    """The classes that (classes,) logits name: the largest; for multilabel each of at least one half."""
    if profile.task == "multiclass":
        return frozenset([int(logits.argmax())])
    return frozenset(np.flatnonzero(logits[-len(profile.classes) :] >= 0).tolist())
