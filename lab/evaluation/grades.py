"""How hard an evaluation tries; the grade's name stands in every report."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Grade:
    """How many images, steps and starts."""

    name: str
    images: int
    steps: int
    restarts: int
    queries: int
    """Of attacks that see scores alone."""

    def altered(self, images: int | None, steps: int | None) -> Grade:
        """The grade with other numbers; its name then says which, so that no report claims more than was tried."""
        changed = [f"{value} {what}" for value, what in ((images, "images"), (steps, "steps")) if value is not None]
        return replace(
            self, name=", ".join([self.name, *changed]), images=images or self.images, steps=steps or self.steps
        )


QUICK = Grade("quick", images=100, steps=100, restarts=2, queries=1000)
"""For development, and for a CPU."""
FULL = Grade("full", images=500, steps=200, restarts=5, queries=5000)
"""What a claim needs."""
GRADES = {grade.name: grade for grade in (QUICK, FULL)}
