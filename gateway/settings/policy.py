"""[policy]: what follows from what the stages found."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from gateway.scan import BARE, MODALITIES, OTHER_MODALITY
from gateway.settings.fields import Name, Table

PValue = Annotated[float, Field(gt=0.0, lt=1.0)]


class SignaturePolicy(Table):
    """What follows from the signature stage; a failed or stripped signature is never admitted."""

    failed: Literal["reject", "quarantine"]
    unsigned: Literal["reject", "quarantine", "unsafe_admit"]
    stripped: Literal["reject", "quarantine"]


class DetectionPolicy(Table):
    """What follows from the detectors' p-value."""

    false_positive_rate: PValue
    """A scan with p <= this is suspect; the artefact must be calibrated for it."""
    suspect: Literal["reject", "quarantine"]
    denoise: Literal["never", "if_agree"]
    grey_p: PValue | None = None
    """Upper end of the grey zone; with `if_agree` only."""

    @model_validator(mode="after")
    def _grey_zone(self) -> Self:
        if self.denoise == "if_agree" and (self.grey_p is None or self.grey_p <= self.false_positive_rate):
            raise ValueError('denoise = "if_agree" needs grey_p greater than false_positive_rate')
        if self.denoise == "never" and self.grey_p is not None:
            raise ValueError('grey_p has no meaning with denoise = "never"')
        return self


class StudyPolicy(Table):
    """What follows from all slices of a study together (docs/policy.md)."""

    false_discovery_rate: PValue
    """Of clean studies at most this share is called suspect, however many slices they have."""
    suspect: Literal["reject", "quarantine"]


class RuleConfig(Table):
    """One line of the table: where every condition that it writes holds, the scan is held or refused.

    There is no word that admits, so a rule can only tighten what the keys above it say.
    """

    name: Name
    """Stands in the log beside what the rule decided."""
    disposition: Literal["reject", "quarantine"]
    modality: tuple[str, ...] = ()
    """Any of these defined terms: what the header says, which of an unsigned scan is the sender's word. A bare tensor
    has no header: `bare` holds for it alone, and so does `other`, which holds for whatever is not told apart."""
    source: tuple[Name, ...] = ()
    """Any of these configured sources."""
    signature: tuple[Literal["unsigned", "indeterminate", "stripped", "failed"], ...] = ()
    """Any of these; `unsigned` also holds for the other three, which are worth no more."""
    p_at_most: PValue | None = None
    """The detectors' joint p-value is this or less; or there is none."""
    detectors: dict[str, PValue] = Field(default_factory=dict)
    """Each of these detectors' own p-value is this or less; or there is none."""
    study_held_min: Annotated[int, Field(ge=1)] | None = None
    """At least so many earlier instances of the study, sent as a whole, were held or refused."""

    @field_validator("modality")
    @classmethod
    def _defined_terms(cls, terms: tuple[str, ...]) -> tuple[str, ...]:
        if strange := sorted(set(terms) - MODALITIES - {BARE, OTHER_MODALITY}):
            raise ValueError(f"{', '.join(strange)}: not a modality that is told apart; `{OTHER_MODALITY}` holds them")
        return terms

    @model_validator(mode="after")
    def _some_condition(self) -> Self:
        if not self.model_fields_set - {"name", "disposition"}:
            raise ValueError("has no condition, so it would hold every scan")
        return self

    @property
    def asks_detectors(self) -> bool:
        """Whether it means anything only where there is a model."""
        return self.p_at_most is not None or bool(self.detectors)


class PolicyConfig(Table):
    """The service policy (architecture 5.6): the worst matching word wins, and every key must be written."""

    indeterminate: Literal["reject", "quarantine", "unsafe_admit"]
    """The gateway could not finish an examination: a crash, a timeout, a lost worker."""
    unexaminable: Literal["reject", "quarantine", "unsafe_admit"]
    """The scan cannot be examined by this route: no pixels, an unsupported transfer syntax, a wrong size."""
    signature: SignaturePolicy
    detection: DetectionPolicy | None = None
    """Required where the route has a model."""
    study: StudyPolicy | None = None
    """Required where whole studies are sent to a route with a model."""
    rules: tuple[RuleConfig, ...] = ()
    """Every one that matches counts, beside the keys above."""

    @model_validator(mode="after")
    def _rules_told_apart(self) -> Self:
        names = [rule.name for rule in self.rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rules are called {', '.join(twice)}")
        return self
