"""Feature squeezing: the furthest that any squeezer moves the model's probabilities.

Xu, Evans and Qi 2018, arXiv:1704.01155: the maximum over squeezers of the L1 distance between the probabilities of the
image and of the squeezed image; bit depth and median as there (the bit depth counts over the whole window, the median
is 3 x 3), JPEG at full bit depth and a Gaussian low-pass in place of non-local means. On a small victim
of ours AUROC 1.0 for PGD that just crosses the boundary and .00 for PGD of twice the budget: where every squeezed copy
is read alike the score is calm, and probabilities saturate where a shift of logits does not (Sharma and Chen 2018,
arXiv:1803.09868). Where the diagnosis is in fine detail, clean scans alarm. Broken, too, by an attacker who squeezes:
He et al. 2017, arXiv:1706.04701.
"""

from typing import Self

import torch
from torch import Tensor

from detectors.detector import Score
from detectors.errors import NotFittedError
from detectors.material import Material
from detectors.models.outputs import Task
from detectors.neighbours.jpeg import Jpeg
from detectors.neighbours.squeezing import BitDepth, LowPass, MedianShift
from detectors.observation import Needs, Observation

SQUEEZERS = (BitDepth(5), MedianShift(), Jpeg(75), LowPass(1.0))


class FeatureSqueezing:
    """The largest L1 distance, from 0 to 2: of several labels their largest, of a segmentation the mean over pixels."""

    name = "feature_squeezing"
    version = "1"
    needs = Needs(neighbours=SQUEEZERS)

    @classmethod
    def fit(cls, _material: Material) -> Self:
        """Itself: nothing is fitted."""
        return cls()

    def score(self, seen: Observation) -> Score:
        """Score each image.

        Raises:
            NotFittedError: the observation lacks a squeezed neighbour.
        """
        if missing := [each.name for each in SQUEEZERS if each.name not in seen.neighbours]:
            raise NotFittedError(f"{self.name} needs {', '.join(missing)}")
        own = _probabilities(seen.logits, seen.task)
        moved = [(_probabilities(seen.neighbours[each.name], seen.task) - own).abs().sum(1) for each in SQUEEZERS]
        if seen.task is Task.MULTILABEL:
            moved = [each.amax(1) for each in moved]
        return Score(self.name, torch.stack([each.reshape(len(own), -1).mean(1) for each in moved]).amax(0))

    def state(self) -> dict[str, Tensor]:
        """The number of squeezers: a state cannot be empty."""
        return {"squeezers": torch.tensor(len(SQUEEZERS))}

    @classmethod
    def from_state(cls, _state: dict[str, Tensor]) -> Self:
        """Itself again."""
        return cls()


def _probabilities(logits: Tensor, task: Task) -> Tensor:
    """(N, K, ...) of the classes; of several labels (N, 2, K), each label's two."""
    if task is Task.MULTILABEL:
        return torch.stack([torch.sigmoid(logits), torch.sigmoid(-logits)], 1)
    return torch.softmax(logits, 1)
