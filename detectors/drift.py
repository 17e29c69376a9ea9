"""Whether scans still fall among the calibrated ones as they should: bets that only a change of the source can win.

Conformal test martingales (Vovk, Nouretdinov and Gammerman 2003; Vovk 2021, arXiv:2102.10439) with two changes. The
reference set is fixed, so that no stream can teach the watch its own drift; given one calibration set the p-values of
a stream are then not quite uniform, and the bets pay for that (`fair`). And the capital is summed over every moment at
which a change may have begun (Shiryaev and Roberts), so that an old calm cannot use up what a new change wins: the sum
exceeds a only once in at least a scans on average while nothing changes (Shin, Ramdas and Rinaldo 2022,
arXiv:2203.03532). It says nothing about single scans, and nothing is ever judged more mildly for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from detectors.calibration import CONFIDENCE, ConformalCalibration
from detectors.errors import InputError

POWERS = (0.3, 0.5, 0.7, 0.9)
"""Exponents of the bets, from those that win on a few extreme scans to those that win on many slightly odd ones."""
SUSPICIOUS, CALM = "suspicious", "calm"
"""Where scans may drift to: towards alarms, or away from them, where a detector may have become blind."""

_DRAWS = 10_000
_AT_ONCE = 200
_SEED = 20210210

Sums = NDArray[np.float64]
"""(2 * len(POWERS),): what each bet has won, the suspicious half first."""


@dataclass(frozen=True, slots=True)
class Drift:
    """The source has changed, as one detector sees it."""

    detector: str
    direction: str
    """`SUSPICIOUS` or `CALM`."""
    evidence: float
    """The sum that crossed the threshold."""
    threshold: float


class Bets:
    """What is won at each place among n calibration scans."""

    def __init__(self, calibration: ConformalCalibration, confidence: float = CONFIDENCE) -> None:
        """Make bets that are fair for ever, with this confidence over the draw of the calibration scans.

        Scans that share a statistic share the mean of their places' gains, as if ties were broken by lot.
        """
        self._calibration = calibration
        self._gains = _tied(fair(calibration.size, confidence), calibration)

    def gains(self, p_value: float) -> Sums:
        """What each bet wins on a scan with this p-value of the calibration."""
        return self._gains[:, self._calibration.place(p_value)]


class Family:
    """The bets on all detectors of one artefact, which share one promise about false alarms; immutable."""

    def __init__(self, calibrations: Mapping[str, ConformalCalibration], *, scans_between_false_alarms: float) -> None:
        """Watch detectors by name; on average at least so many scans pass between two false alarms of any of them."""
        if not calibrations or not scans_between_false_alarms >= 1.0:
            raise InputError("drift is watched on at least one detector, with at least one scan between false alarms")
        confidence = 1 - (1 - CONFIDENCE) / len(calibrations)
        self._bets = {name: Bets(calibration, confidence) for name, calibration in calibrations.items()}
        # The sums of all detectors together grow by at most one a scan for each, whatever depends on what.
        self.threshold = scans_between_false_alarms * len(self._bets)

    @property
    def detectors(self) -> tuple[str, ...]:
        """Whom it watches."""
        return tuple(self._bets)

    def start(self) -> dict[str, Sums]:
        """The sums before the first scan."""
        return {name: np.zeros(2 * len(POWERS)) for name in self._bets}

    def after(self, sums: Mapping[str, Sums], p_values: Mapping[str, float]) -> tuple[dict[str, Sums], list[Drift]]:
        """The sums after one scan more, and what crossed the threshold with it.

        A detector that crossed begins anew from nothing, so that it can tell again.

        Args:
            sums: by detector, as `start` or an earlier call gave them.
            p_values: of one scan and every watched detector, as the calibrations gave them.
        """
        moved, drifts = {}, []
        for name, bets in self._bets.items():
            now = (1.0 + sums[name]) * bets.gains(p_values[name])
            if (evidence := total(now)) >= self.threshold:
                drifts.append(Drift(name, direction(now), evidence, self.threshold))
                now = np.zeros_like(now)
            moved[name] = now
        return moved, drifts


def total(sums: Sums) -> float:
    """Evidence of one detector: the mean of what its bets have won."""
    return float(sums.mean())


def direction(sums: Sums) -> str:
    """Which half of the bets won."""
    half = len(sums) // 2
    return SUSPICIOUS if sums[:half].sum() >= sums[half:].sum() else CALM


@lru_cache(maxsize=16)
def fair(n: int, confidence: float) -> NDArray[np.float64]:
    """(2 * len(POWERS), n + 1): gain of each bet for each number of calibration scans that are at least as suspicious.

    Bet e on suspicious scans wins in proportion to e u^(e - 1) at rank u, averaged over the rank's cell; on calm ones
    the same from the other end. A new scan of the source falls into the gaps between n calibration scans with chances
    that are Dirichlet(1, ..., 1) over the draw of those scans. All gains are divided by so much that with `confidence`
    none of the bets has a mean above one, given the calibration set that was drawn; by simulation, the same each time.
    """
    edges = np.arange(n + 2) / (n + 1)
    suspicious = np.stack([np.diff(edges**power) * (n + 1) for power in POWERS])
    gains = np.concatenate([suspicious, suspicious[:, ::-1]])
    draws = np.random.default_rng(_SEED)
    means = []
    for _ in range(_DRAWS // _AT_ONCE):
        chances = draws.standard_exponential((_AT_ONCE, n + 1))
        means.append(chances @ gains.T / chances.sum(axis=1, keepdims=True))
    drawn = np.concatenate(means)
    ranks = drawn.argsort(axis=0).argsort(axis=0)  # the same share of draws for each bet, so that none pays for another
    level = np.quantile(ranks.max(axis=1) / (_DRAWS - 1), confidence)
    scaled: NDArray[np.float64] = gains / np.maximum(np.quantile(drawn, level, axis=0), 1.0)[:, None]
    scaled.flags.writeable = False
    return scaled


def _tied(gains: NDArray[np.float64], calibration: ConformalCalibration) -> NDArray[np.float64]:
    """The gains with those of equal calibration statistics averaged."""
    shared = gains.copy()
    for first, last in calibration.ties():
        shared[:, first : last + 1] = gains[:, first : last + 1].mean(axis=1, keepdims=True)
    return shared
