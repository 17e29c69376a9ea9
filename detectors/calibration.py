"""From scores to p-values: a smooth tail for fusing, a conformal rule for deciding.

Two calibrations, because two things are wanted. `TailCalibration` orders well, also beyond every clean scan it was
fitted on, and has a gradient; it promises nothing. `ConformalCalibration` promises: on a clean scan of the calibrated
source, P(p <= alpha) <= alpha. It promises nothing about attacked scans, which break exchangeability on purpose.
"""

import math
from collections.abc import Mapping, Sequence
from enum import Enum, unique
from itertools import accumulate
from typing import Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from detectors.errors import InputError, NotFittedError

TAIL = 0.05
"""Share of clean scans beyond which the rank gives way to a smooth tail."""

RARE = 0.01
"""Of calibrations: where the loudest clean scan would be so loud in fewer, the tail is another one than was thought."""

SMALLEST = 1e-300
"""Where a tail would run out to 0, which is no p-value."""

CONFIDENCE = 0.95
"""With which the confident guarantee holds, given the calibration set."""


@unique
class Guarantee(Enum):
    """What a conformal p-value promises."""

    CONFIDENT = "confident"
    """With 95 % confidence over the calibration set, the false-positive rate of `p <= alpha` is at most alpha."""
    MARGINAL = "marginal"
    """On average over calibration sets it is; for this one it may be higher."""


class TailCalibration:
    """Rank among clean scores up to the 95th percentile, an exponential tail beyond.

    One of them, or several together, so that many detectors cost no more steps than one.
    """

    def __init__(self, knots: Tensor, scale: Tensor) -> None:
        """Hold the fit.

        Args:
            knots: (M,) increasing quantiles of the clean scores, evenly spaced in probability from 0 to 0.95; of D
                detectors together (D, M).
            scale: () mean excess of the clean scores over the last knot; (D, 1).
        """
        if knots.ndim not in (1, 2) or knots.shape[-1] < 2 or not bool(torch.isfinite(knots).all()):
            raise NotFittedError("a tail calibration needs at least two finite knots")
        self._knots, self._scale = knots, scale

    @classmethod
    def fit(cls, scores: Tensor, knots: int = 96) -> Self:
        """Fit on the scores of clean scans (N,), N at least 20."""
        if len(scores) < 20:
            raise InputError(f"{len(scores)} clean scores are too few for a tail; at least 20 are needed")
        if not bool(torch.isfinite(scores).all()):
            raise InputError("a clean score is not finite")
        chances = torch.linspace(0, 1 - TAIL, knots, dtype=scores.dtype, device=scores.device)
        quantiles = torch.quantile(scores, chances)
        beyond = scores[scores > quantiles[-1]] - quantiles[-1]
        spread = (quantiles[-1] - quantiles[0]).clamp_min(1e-6)
        scale = beyond.mean() if len(beyond) else spread / 20
        return cls(quantiles, scale.clamp_min(1e-6 * float(spread)))

    @classmethod
    def together(cls, tails: Sequence[Self]) -> Self:
        """Those of several detectors, for scores (D, N); raises `NotFittedError` where they were fitted unlike."""
        if len({tail._knots.shape for tail in tails}) != 1:
            raise NotFittedError("tail calibrations of one ensemble need as many knots each")
        return cls(torch.stack([tail._knots for tail in tails]), torch.stack([tail._scale for tail in tails])[:, None])

    def surprise(self, scores: Tensor) -> Tensor:
        """Minus the logarithm of the p-value: (N,), or (D, N); at least 0, increasing; differentiable almost
        everywhere."""
        knots = self._knots.to(scores)
        count, last = knots.shape[-1], knots[..., -1:]
        right = torch.searchsorted(knots, scores.detach().contiguous()).clamp(1, count - 1)
        low, high = knots.gather(-1, right - 1), knots.gather(-1, right)
        share = ((scores - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
        body = -torch.log1p((right - 1 + share) * (-(1 - TAIL) / (count - 1)))
        tail = -math.log(TAIL) + self._beyond((scores - last).clamp_min(0) / self._scale.to(scores))
        return torch.where(scores > last, tail, body)

    def _beyond(self, excess: Tensor) -> Tensor:
        """What surprise is added by an excess over the last knot, in units of the scale."""
        return excess

    def p_value(self, scores: Tensor) -> Tensor:
        """As many, in (0, 1]; orders, does not promise."""
        return torch.exp(-self.surprise(scores))

    def state(self) -> dict[str, Tensor]:
        """Knots (M,) and scale ()."""
        return {"knots": self._knots, "scale": self._scale}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted calibration again."""
        return cls(state["knots"], state["scale"])


class ParetoTail(TailCalibration):
    """The same for the loudest voice of a channel, with a tail that grows as a logarithm.

    Beyond the last knot the p-value falls as 1 / (1 + excess / mean excess). So the channels' weights divide how far a
    voice is beyond its clean scans: one of half the weight must be twice as far to be as loud. Of an exponential tail
    they would only take off a constant, and the one far outlier of a light channel would set the threshold of all.
    """

    def _beyond(self, excess: Tensor) -> Tensor:
        return torch.log1p(excess)


class ConformalCalibration:
    """p-values by rank among clean statistics that nothing else was fitted on.

    With c of n clean statistics at least as large, the marginal p-value is (1 + c) / (n + 1) (Vovk et al. 2005). The
    confident one is the 95 % quantile of Beta(c + 1, n - c), and 1 where c = n: the upper Clopper-Pearson end of the
    clean alarm rate at that place (Bates et al. 2023, arXiv:2104.08279). Either is a table of n + 1 numbers, stored,
    so that nothing but a search is left for run time.

    Ranks cannot tell scans apart that are louder than every clean one, and a study of 500 slices needs that. There,
    where it is asked for, the k loudest clean statistics are drawn on as an exponential whose scale is estimated from
    them: at an excess e over the (k + 1)-th

        (k + 1) / (n + 1) * (1 + e / sum of the k excesses) ** -k

    and never more than the smallest rank. Where the tail is exponential that formula is exact on average over
    calibration sets (the excesses over an order statistic are then independent of it, Renyi 1953), so with the ranks
    P(p <= alpha) <= alpha; where it is not, nothing is promised. A joined statistic, whose channels grow as logarithms
    (`ParetoTail`), has a lighter one; a detector's own score may have a heavier one. Where the loudest clean scan
    itself would be rarer than once in a hundred calibrations (a far outlier, or one of few values), the tail is not
    exponential, and p-values end with the ranks; below 40 scans there are too few to tell.
    """

    def __init__(self, statistics: Tensor, table: Tensor, guarantee: Guarantee) -> None:
        """Hold the fit.

        Args:
            statistics: (n,) clean statistics, increasing.
            table: (n + 1,) p-value for each number of clean statistics that are at least as large.
            guarantee: what the table promises.
        """
        if not bool(torch.isfinite(statistics).all()):
            raise NotFittedError("a clean statistic is not finite")
        if not len(statistics) or table.shape != (len(statistics) + 1,):
            raise NotFittedError("a conformal table has one entry more than there are clean statistics")
        if bool((statistics.diff() < 0).any()) or bool((table.diff() < 0).any()) or float(table[-1]) > 1:
            raise NotFittedError("a conformal table must be sorted and end at or below 1")
        self._statistics, self._table, self.guarantee = statistics, table, guarantee
        self._tail = tail_of(statistics)

    @classmethod
    def fit(cls, statistics: Tensor, fpr: float) -> Self:
        """Calibrate on clean statistics (n,) for a target false-positive rate.

        The guarantee is confident where n allows it at this rate (299 at 1 %), else marginal.

        Raises:
            InputError: n is below ceil(1 / fpr) - 1, so that no scan could ever be flagged; or not finite.
        """
        n = len(statistics)
        if not bool(torch.isfinite(statistics).all()):
            raise InputError("a clean statistic is not finite")
        if n < fewest(fpr, Guarantee.MARGINAL):
            raise InputError(
                f"{n} clean scans cannot support a false-positive rate of {fpr:g}: at least "
                f"{fewest(fpr, Guarantee.MARGINAL)} are needed, {fewest(fpr, Guarantee.CONFIDENT)} for 95 % confidence"
            )
        guarantee = Guarantee.CONFIDENT if n >= fewest(fpr, Guarantee.CONFIDENT) else Guarantee.MARGINAL
        return cls(statistics.sort().values, table(n, guarantee).to(statistics.device), guarantee)

    def p_value(self, statistics: Tensor, *, beyond: bool = False) -> Tensor:
        """(N,) float64 in (0, 1], decreasing in the statistic; carries no gradient.

        Args:
            statistics: (N,).
            beyond: draw the clean ones on where ranks end.

        Raises:
            InputError: a statistic is not a number.
        """
        if bool(torch.isnan(statistics).any()):
            raise InputError("a statistic is not a number")
        known = self._statistics.to(statistics.device, torch.float64)
        asked = statistics.detach().double().contiguous()
        at_least = self.size - torch.searchsorted(known, asked, side="left")
        ranked = self._table.to(asked.device)[at_least]
        if not beyond:
            return ranked
        return torch.where(at_least > 0, ranked, torch.minimum(ranked, drawn_on(asked, self._tail.to(asked.device))))

    @property
    def goes_on(self) -> bool:
        """Whether p-values go on beyond the loudest clean scan, or end with the ranks."""
        return bool(self._tail[0] > 0)

    def place(self, p_value: float) -> int:
        """How many clean statistics were at least as large, from 0 to n, where `p_value` was given."""
        return min(int(torch.searchsorted(self._table, torch.tensor(p_value, dtype=torch.float64))), self.size)

    def ties(self) -> list[tuple[int, int]]:
        """First and last place of scans that share their statistic with several clean ones."""
        counts = torch.unique(self._statistics, return_counts=True)[1].flip(0).tolist()
        return [(end - count, end) for count, end in zip(counts, accumulate(counts), strict=True) if count > 1]

    def threshold(self, alpha: float) -> float:
        """The statistic above which p <= alpha.

        Raises:
            InputError: there are too few clean statistics for any scan to be flagged at this rate.
        """
        flagged = int((self._table <= alpha).sum())
        if not flagged:
            raise InputError(f"{self.size} clean scans flag nothing at {alpha:g}")
        if flagged > self.size:
            return -math.inf
        return float(self._statistics[self.size - flagged])

    @property
    def size(self) -> int:
        """Number of clean scans."""
        return len(self._statistics)

    def state(self) -> dict[str, Tensor]:
        """Statistics (n,), table (n + 1,), and whether the guarantee is the confident one."""
        confident = torch.tensor(self.guarantee is Guarantee.CONFIDENT)
        return {"statistics": self._statistics, "table": self._table, "confident": confident}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted calibration again."""
        guarantee = Guarantee.CONFIDENT if bool(state["confident"]) else Guarantee.MARGINAL
        return cls(state["statistics"], state["table"], guarantee)


class Promised:
    """Conformal calibrations of several detectors, asked at once: as many steps as one alone takes."""

    def __init__(self, calibrations: Mapping[str, ConformalCalibration]) -> None:
        """`calibrations` by detector, at least one; their numbers of clean scans may differ."""
        each = list(calibrations.values())
        self._names = tuple(calibrations)
        self._known = pad_sequence([c._statistics.double() for c in each], batch_first=True, padding_value=math.inf)
        self._table = pad_sequence([c._table for c in each], batch_first=True, padding_value=1.0)
        self._sizes = torch.tensor([[c.size] for c in each], device=self._known.device)

    def p_values(self, statistics: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By detector (N,) float64 in (0, 1], as `ConformalCalibration.p_value` gives them.

        Args:
            statistics: by detector, (N,) each, where the calibrations lie.

        Raises:
            InputError: a statistic is not a number.
        """
        asked = torch.stack([statistics[name] for name in self._names]).detach().double()
        if bool(torch.isnan(asked).any()):
            raise InputError("a statistic is not a number")
        smaller = torch.searchsorted(self._known, asked, side="left")
        found = self._table.gather(1, self._sizes - smaller)
        return dict(zip(self._names, found.unbind(), strict=True))


def tail_of(statistics: Tensor) -> Tensor:
    """(4,) float64 of clean statistics (n,), increasing, n at least 1: k, the chance to be beyond the (k + 1)-th
    loudest, that statistic, and by how much the k loudest exceed it together. Where they are not exponential k is 0,
    and the chance 1."""
    n = len(statistics)
    k = min(max(1, int(TAIL * n)), n - 1)
    over = float(statistics[n - k - 1])
    excesses = (statistics[n - k :].double() - over).tolist()
    tail = torch.tensor([k, (k + 1) / (n + 1), over, sum(excesses)], dtype=torch.float64)
    others = torch.tensor([k - 1, k / n, over, sum(excesses[:-1])], dtype=torch.float64)  # than the loudest
    usual = sum(excesses[:-1]) > 0 and n * float(drawn_on(statistics[-1].cpu(), others)) >= RARE
    if not (usual or (k == 1 and excesses[0] > 0)):
        tail = torch.tensor([0.0, 1.0, over, 1.0], dtype=torch.float64)
    return tail.to(statistics.device)


def drawn_on(statistics: Tensor, tail: Tensor) -> Tensor:
    """p-values in (0, 1] of statistics beyond the k loudest clean ones, as many; `tail` as `tail_of` gives it."""
    k, chance, over, excesses = tail
    far = ((statistics.double() - over) / excesses).clamp(0, 1 / SMALLEST)
    beyond: Tensor = chance * torch.exp(-k * torch.log1p(far))
    return beyond.clamp_min(SMALLEST)


def fewest(fpr: float, guarantee: Guarantee) -> int:
    """The smallest number of clean scans with which a scan can be flagged at this rate."""
    if not 0 < fpr < 1:
        raise InputError(f"a false-positive rate lies between 0 and 1, not at {fpr:g}")
    if guarantee is Guarantee.MARGINAL:
        return math.ceil(1 / fpr - 1e-9) - 1
    return math.ceil(math.log(1 - CONFIDENCE) / math.log1p(-fpr) - 1e-9)


def smallest(n: int, guarantee: Guarantee) -> float:
    """The p-value of a scan that is louder than all of n clean ones; raises InputError where there are none."""
    if n < 1:
        raise InputError("a p-value needs clean scans to compare with")
    return 1 / (n + 1) if guarantee is Guarantee.MARGINAL else -math.expm1(math.log(1 - CONFIDENCE) / n)


def table(n: int, guarantee: Guarantee) -> Tensor:
    """(n + 1,) float64: the p-value for c = 0 to n clean statistics at least as large."""
    counts = torch.arange(n + 1, dtype=torch.float64)
    if guarantee is Guarantee.MARGINAL:
        return (1 + counts) / (n + 1)
    from scipy.special import betaincinv  # noqa: PLC0415 - needed to fit, never to run

    upper = betaincinv(counts[:-1].numpy() + 1, n - counts[:-1].numpy(), CONFIDENCE)
    return torch.cat([torch.as_tensor(upper, dtype=torch.float64), torch.ones(1, dtype=torch.float64)])
