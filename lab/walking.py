"""An attacker who walks a threshold away: he adds scans that lie a little above it each time it is calibrated."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch

from detectors.artifact import Promises
from detectors.calibration import ConformalCalibration, TailCalibration
from detectors.ensemble import JOINED
from lab import recalibration
from lab.recalibration import Proposal

FPR = 0.01


@dataclass(slots=True)
class Walk:
    """A detector whose clean statistics are exponential, so that a nat is a nat, calibrated again and again."""

    promises: Promises
    rng: np.random.Generator

    @classmethod
    def begin(cls, seed: int, scans: int = 2000) -> Self:
        """Fit on clean scans; this calibration is the anchor."""
        rng = np.random.default_rng(seed)
        tail = TailCalibration.fit(torch.from_numpy(rng.exponential(size=scans)))
        first = {JOINED: ConformalCalibration.fit(torch.from_numpy(rng.exponential(size=scans)), FPR)}
        return cls(Promises(first, first, {"a": tail}), rng)

    def step(self, share: float, above: float, scans: int = 2000) -> Proposal:
        """Calibrate on clean scans and a poisoned share, which lies up to twice `above` nats over the threshold."""
        clean = self.rng.exponential(size=round(scans * (1 - share)))
        poison = self.threshold + self.rng.uniform(0.0, 2 * above, scans - len(clean))
        new = {JOINED: ConformalCalibration.fit(torch.from_numpy(np.concatenate([clean, poison])), FPR)}
        return Proposal(new, recalibration.compare(self.promises, new, FPR))

    def take(self, proposal: Proposal) -> None:
        """Serve the candidate."""
        self.promises = Promises(proposal.calibrations, self.promises.anchor, self.promises.tails)

    @property
    def threshold(self) -> float:
        """That decides now."""
        return self.promises.deployed[JOINED].threshold(FPR)
