"""The contract of an upstream: it asks the protected model about an admitted case."""

from __future__ import annotations

from typing import Protocol

from gateway.case import Case
from gateway.deadline import Deadline
from gateway.reply import Prediction
from gateway.verdict import Verdict


class Upstream(Protocol):
    """A protected model; safe to call from many threads at once."""

    @property
    def name(self) -> str:
        """The configured name, as in metrics."""

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
