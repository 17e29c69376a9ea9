"""The contract of a stage: one examination that adds exactly one finding to a case."""

from __future__ import annotations

from typing import Protocol

from gateway.case import Case
from gateway.deadline import Deadline


class Stage(Protocol):
    """One examination; synchronous, safe to call from many threads at once.

    A stage observes: a bad scan is a finding, not an exception. What it raises, the pipeline records as
    `indeterminate`, so that a stage's failure can never be read as a pass; `Overloaded` alone goes to the caller.
    """

    @property
    def name(self) -> str:
        """Stage name as in findings and metrics."""

    @property
    def requires(self) -> frozenset[str]:
        """Products (`view`, `image`, `evidence`) without which the stage is skipped."""

    @property
    def provides(self) -> frozenset[str]:
        """Products it may leave for later stages."""

    def run(self, case: Case, deadline: Deadline) -> Case:
        """Examine; the case that comes back has one finding more."""
