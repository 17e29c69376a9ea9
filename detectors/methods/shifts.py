"""Prediction shifts: how much of the model's lead a harmless change takes away.

Xu et al. 2018, arXiv:1704.01155 (feature squeezing); Das et al. 2017, arXiv:1705.02900 (JPEG). Broken by an attacker
who puts the change into his loss: He et al. 2017, arXiv:1706.04701.
"""

from torch import Tensor

from detectors.detector import Score, spelled
from detectors.errors import NotFittedError
from detectors.material import Material
from detectors.observation import Needs, Neighbour, Observation


class PredictionShift:
    """How firmly the model holds its decision, minus how firmly it does on one neighbour; in units of logits."""

    version = "1"

    def __init__(self, neighbour: Neighbour) -> None:
        self._neighbour = neighbour

    @property
    def name(self) -> str:
        """That of the neighbour."""
        return self._neighbour.name

    @property
    def needs(self) -> Needs:
        """The neighbour."""
        return Needs(neighbours=(self._neighbour,))

    def fit(self, _material: Material) -> "PredictionShift":
        """Itself: nothing is fitted."""
        return self

    def score(self, seen: Observation) -> Score:
        """Score each image.

        Raises:
            NotFittedError: the observation has no such neighbour.
        """
        if self.name not in seen.neighbours:
            raise NotFittedError(self.name)
        return Score(self.name, shift(seen, self.name))

    def state(self) -> dict[str, Tensor]:
        """Its name, so that the file says what it is."""
        return {"name": spelled(self.name)}

    def from_state(self, _state: dict[str, Tensor]) -> "PredictionShift":
        """Itself again."""
        return self


def shift(seen: Observation, name: str) -> Tensor:
    """(N,) the lead that the named neighbour takes away."""
    return seen.lead - seen.lead_in(seen.neighbours[name])
