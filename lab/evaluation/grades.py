"""How hard an evaluation tries; the grade's name stands in every report."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Grade:
    """How many images, steps and starts."""

    name: str
    images: int
    steps: int
    restarts: int
    queries: int
    """Of attacks that see scores alone."""


QUICK = Grade("quick", images=100, steps=100, restarts=2, queries=1000)
"""For development, and for a CPU."""
FULL = Grade("full", images=500, steps=200, restarts=5, queries=5000)
"""What a claim needs."""
GRADES = {grade.name: grade for grade in (QUICK, FULL)}
