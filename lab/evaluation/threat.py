"""What a site declares that its gateway must withstand: one TOML file, every mistake named by its key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from gateway.errors import ConfigError
from gateway.settings.document import read, sentences
from gateway.settings.fields import Table
from lab.evaluation.choices import CHOICES
from lab.evaluation.grades import GRADES

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Budget = Annotated[float, Field(ge=1.0, le=255.0, multiple_of=1.0)]
"""Of 8-bit images, which hold whole grey levels alone."""


class CleanClaim(Table):
    """[clean]: what holds without any attack."""

    false_positive_rate_max: Share
    """Not met where the lower end of the measured rate is above it."""
    accuracy_min: Share
    """Of the model on clean test scans; not met where the upper end of the measured rate is below it."""
    harmless_max: Share | None = None
    """Flagged after any change of the null attack; not met where the lower end is above it."""


class AttackClaim(Table):
    """[[attack]]: what must hold against attacks of one tier, each by itself, at each budget."""

    tier: Literal["oblivious", "black-box", "transfer", "adaptive"]
    names: tuple[str, ...] = ()
    """Attacks of the tier; the attacker who holds the detectors has one alone."""
    budgets: tuple[Budget, ...] = ()
    """8-bit grey levels of the window; for attacks that have a budget."""
    evasion_max: Share | None = None
    """Misread and admitted, of all attacked; not met where the upper end of the measured rate is above it."""
    tpr_min: Share | None = None
    """Flagged at the target rate, of those that succeed; not met where the lower end is below it."""
    converged: bool = False
    """The attack's curve must be flat, or it says too little."""

    @field_validator("names")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if strange := sorted(set(names) - set(CHOICES)):
            raise ValueError(f"no attack is called {', '.join(strange)}")
        return names

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.tier == "adaptive") == bool(self.names):
            raise ValueError('names: needed by every tier but "adaptive", which has none')
        if others := [name for name in self.names if CHOICES[name].tier != self.tier]:
            raise ValueError(f"names: {', '.join(others)}: of another tier")
        sized = self.tier == "adaptive" or any(CHOICES[name].sized for name in self.names)
        if sized != bool(self.budgets):
            raise ValueError("budgets: needed by attacks that have one, and by no other")
        if self.evasion_max is None and self.tpr_min is None:
            raise ValueError("claims nothing: needs evasion_max or tpr_min")
        if self.converged and self.tier != "adaptive":
            raise ValueError('converged: goes with the tier "adaptive", which alone tells its curve')
        return self


class WorstClaim(Table):
    """[[worst_case]]: what may be lost to all attacks that were tried at a budget, taken together."""

    budget: Budget
    lost_max: Share
    """Scans that any attack of at most this budget evades with; not met where the upper end is above it."""


class ThreatModel(Table):
    """The whole file."""

    name: Annotated[str, Field(min_length=1, max_length=128)]
    grade: str
    """How hard the attacks try: `quick` or `full`."""
    clean: CleanClaim
    attack: tuple[AttackClaim, ...] = Field(min_length=1)
    worst_case: tuple[WorstClaim, ...] = ()

    @field_validator("grade")
    @classmethod
    def _known(cls, grade: str) -> str:
        if grade not in GRADES:
            raise ValueError(f"is one of {', '.join(GRADES)}")
        return grade

    @model_validator(mode="after")
    def _tried(self) -> Self:
        for each in self.worst_case:
            if each.budget not in self.levels:
                raise ValueError(f"worst_case: no attack is tried at {each.budget:g} levels")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file; raises `ConfigError`, which names every key at fault."""
        document = read(path)
        try:
            return cls.model_validate_json(json.dumps(document, default=str))
        except ValidationError as error:
            raise ConfigError([f"{path}: {each}" for each in sentences(error.errors(include_url=False))]) from error

    @property
    def attacks(self) -> list[str]:
        """Those that must be tried, without the informed attacker."""
        return list(dict.fromkeys(name for claim in self.attack for name in claim.names))

    @property
    def levels(self) -> list[float]:
        """Every budget that is claimed about."""
        return sorted({budget for claim in self.attack for budget in claim.budgets})

    @property
    def informed(self) -> bool:
        """Whether anything is claimed about the attacker who holds the detectors."""
        return any(claim.tier == "adaptive" for claim in self.attack)
