"""MAAdvT: MART's objective, under attacks of varying strength."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lab.hardening.mart import objective
from lab.hardening.method import Method, Pupil
from lab.hardening.mpadvt import drawn
from lab.learning import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class MAAdvT(Method):
    """Xu et al. 2021, arXiv:2103.03438: every batch is attacked, as strongly as is drawn for it.

    In pixel space: the released code clamps the attacked image to 0 and 1 after normalisation, which blackens whatever
    is darker than the mean and leaves the ball. For several findings the paper gives no code; here each finding is two
    classes of its own. Limits: those of MART.
    """

    name: ClassVar[str] = "maadvt"
    paper: ClassVar[str] = "Xu et al. 2021, arXiv:2103.03438"
    broken_by: ClassVar[str] = "Croce and Hein 2020, arXiv:2003.01690 (of MART, whose objective it is)"
    limits: ClassVar[str] = (
        "Robust inside its own ball and norm only; costs clean accuracy, most where classes overlap."
    )

    eps_low: float = 1.0
    """Grey levels."""
    eps_high: float = 8.0
    steps_max: int = 9
    weight: float = 6.0

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return MART's objective."""
        changed = drawn(pupil, batch, self.eps_low, self.eps_high, self.steps_max)
        return objective(pupil, batch, changed, self.weight)
