"""Prediction shifts: how much of the model's lead a harmless change takes away.

Xu et al. 2018, arXiv:1704.01155 (feature squeezing); Das et al. 2017, arXiv:1705.02900 (JPEG). Broken by an attacker
who puts the change into his loss: He et al. 2017, arXiv:1706.04701.
"""

from typing import Self

from torch import Tensor

from detectors.detector import Score, read_name, spelled
from detectors.errors import NotFittedError
from detectors.observation import Observation, Signal, margin


class PredictionShift:
    """Margin of the predicted class, minus its margin on one neighbour; in units of logits."""

    version = "1"
    needs = frozenset({Signal.LOGITS, Signal.SHIFTS})

    def __init__(self, name: str) -> None:
        self.name = name

    def score(self, seen: Observation) -> Score:
        """Score each image.

        Raises:
            NotFittedError: the observation has no such neighbour.
        """
        if self.name not in seen.shifts:
            raise NotFittedError(self.name)
        return Score(self.name, shift(seen, self.name))

    def state(self) -> dict[str, Tensor]:
        """Its name: nothing is fitted."""
        return {"name": spelled(self.name)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The detector again."""
        return cls(read_name(state["name"]))


def shift(seen: Observation, name: str) -> Tensor:
    """(N,) the lead that the named neighbour takes away."""
    return margin(seen.logits, seen.predictions) - margin(seen.shifts[name], seen.predictions)
