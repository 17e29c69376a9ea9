"""The contract of an upstream: it asks the protected model about an admitted case."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gateway.case import Case
from gateway.deadline import Deadline
from gateway.errors import UpstreamError
from gateway.profile import Profile
from gateway.reply import Prediction
from gateway.verdict import Disposition, Verdict


class Upstream(Protocol):
    """A protected model; safe to call from many threads at once."""

    @property
    def name(self) -> str:
        """The configured name, as in metrics."""

    @property
    def needs_image(self) -> bool:
        """Whether it is asked about the image, and so cannot be where there is none."""

    @property
    def ready(self) -> bool:
        """Whether it may be expected to answer now; asks nobody."""

    def predict(self, case: Case, verdict: Verdict, deadline: Deadline) -> Prediction | None:
        """Ask the model about what was admitted: the image, or its denoised form.

        None where nobody waits for an answer: what was admitted is on disk then, and will be handed on.

        Args:
            case: an examined case.
            verdict: of an admitting disposition; ADMIT_DENOISED sends `case.evidence.denoised`.
            deadline: until when the caller waits.

        Raises:
            UpstreamError: no answer, or none that is a prediction.
            Overloaded: nothing more can be kept to be handed on.
        """

    def close(self, after_s: float) -> None:
        """Let go of what it holds once nobody can be using it: after that many seconds; does not wait."""


def admitted(case: Case, verdict: Verdict) -> NDArray[np.float32]:
    """(frames, channels, rows, columns): what the verdict lets through, and nothing else; raises `UpstreamError`."""
    if verdict.disposition is Disposition.ADMIT and case.image is not None:
        return case.image.pixels
    if (
        verdict.disposition is Disposition.ADMIT_DENOISED
        and case.evidence is not None
        and case.evidence.denoised is not None
    ):
        return case.evidence.denoised
    raise UpstreamError("the verdict leaves nothing that the model may be asked about")


def prediction(model: str, profile: Profile, output: NDArray[np.float32]) -> Prediction:
    """What (frames, classes) of a graph's output mean for the series; raises `UpstreamError` on what is no number."""
    scores = profile.probabilities(output).mean(axis=0)
    if not np.isfinite(scores).all():
        raise UpstreamError("the model gave scores that are not finite")
    return Prediction(model, profile.version, profile.classes, tuple(scores.astype(float).tolist()))
