"""What every threshold would do: detection and risk over the share of clean scans that it rejects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROWTH = 1.25
"""Of the numbers of clean scans at which a curve is told, beyond the first few."""
EVERY = 10
"""Up to so many clean scans each number is told: there a curve matters most."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The thresholds at which curves are told: each rejects at most a number of the clean scans."""

    counts: tuple[int, ...]
    """Increasing, from 0 to all."""
    clean: int

    @classmethod
    def of(cls, clean: int) -> Thresholds:
        """For so many clean scans."""
        counts, following = list(range(min(clean, EVERY) + 1)), float(EVERY)
        while counts[-1] < clean:
            following *= GROWTH
            counts.append(min(clean, round(following)))
        return cls(tuple(counts), clean)

    @property
    def rates(self) -> tuple[float, ...]:
        """The share of clean scans that each may reject."""
        return tuple(count / self.clean for count in self.counts)

    def admitted(self, clean: Tensor, attacked: Tensor) -> Tensor:
        """(thresholds, M) bool: which attacked scans each threshold admits.

        Args:
            clean: (N,) suspicion of clean scans.
            attacked: (M,) suspicion of attacked ones; a tie with the first clean scan that is kept is admitted.
        """
        assert len(clean) == self.clean
        loudest = clean.sort(descending=True).values
        least = torch.cat([loudest, loudest.new_tensor([-torch.inf])])[list(self.counts)]
        return attacked[None] <= least[:, None]


def roc(thresholds: Thresholds, clean: Tensor, attacked: Tensor) -> tuple[float, ...]:
    """The share of attacked scans (M,) that is rejected at each threshold."""
    return _rounded((~thresholds.admitted(clean, attacked)).double().mean(1))


def risk(thresholds: Thresholds, clean: Tensor, attacked: Tensor, misread: Tensor) -> tuple[tuple[float, ...], ...]:
    """At each threshold, of all attacked scans, what is misread and admitted, and what is admitted.

    Args:
        thresholds: over the clean scans.
        clean: (N,) suspicion of clean scans.
        attacked: (M,) suspicion of attacked ones.
        misread: (M,) bool.
    """
    admitted = thresholds.admitted(clean, attacked)
    return _rounded((admitted & misread).double().mean(1)), _rounded(admitted.double().mean(1))


def _rounded(values: Tensor) -> tuple[float, ...]:
    found: Sequence[float] = values.tolist()
    return tuple(round(value, 4) for value in found)
