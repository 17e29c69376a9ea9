"""[policy]: what follows from what the stages found."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from gateway.settings.fields import Table


class SignaturePolicy(Table):
    """What follows from the signature stage; a failed or stripped signature is never admitted."""

    failed: Literal["reject", "quarantine"]
    unsigned: Literal["reject", "quarantine", "unsafe_admit"]
    stripped: Literal["reject", "quarantine"]


class DetectionPolicy(Table):
    """What follows from the detectors' p-value."""

    false_positive_rate: Annotated[float, Field(gt=0.0, lt=1.0)]
    """A scan with p <= this is suspect; the artefact must be calibrated for it."""
    suspect: Literal["reject", "quarantine"]
    denoise: Literal["never", "if_agree"]
    grey_p: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Upper end of the grey zone; with `if_agree` only."""

    @model_validator(mode="after")
    def _grey_zone(self) -> Self:
        if self.denoise == "if_agree" and (self.grey_p is None or self.grey_p <= self.false_positive_rate):
            raise ValueError('denoise = "if_agree" needs grey_p greater than false_positive_rate')
        if self.denoise == "never" and self.grey_p is not None:
            raise ValueError('grey_p has no meaning with denoise = "never"')
        return self


class PolicyConfig(Table):
    """The service policy (architecture 5.6): the worst matching word wins, and every key must be written."""

    indeterminate: Literal["reject", "quarantine", "unsafe_admit"]
    """The gateway could not finish an examination: a crash, a timeout, a lost worker."""
    unexaminable: Literal["reject", "quarantine", "unsafe_admit"]
    """The scan cannot be examined by this route: no pixels, an unsupported transfer syntax, a wrong size."""
    signature: SignaturePolicy
    detection: DetectionPolicy | None = None
    """Required where the route has a model."""
