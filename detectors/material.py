"""What a detector is fitted on: clean scans, the same harmlessly changed, simulated attacks, and a way to look."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detectors.errors import InputError
from detectors.observation import Needs, Observation, Signal
from detectors.probe import Probe

BATCH = 64
Progress = Callable[[float], None]
"""Told the share of the work that is done."""


@dataclass(frozen=True, slots=True)
class Wider:
    """More of both: scans as the protected model was not trained on, and attacks that follow its gradient smoothed."""

    benign: Tensor
    """(., C, H, W): the clean scans turned, scaled and shifted, and attacks of other scans."""
    attacked: Tensor
    """(., C, H, W): attacks that succeeded on the clean scans and on the moved ones."""


@dataclass(frozen=True, slots=True)
class Material:
    """One part of the clean scans and what was made of them; all images (., C, H, W) from 0 to 1, on the CPU.

    No label of a scan is here: what a detector learns, it learns from the protected model's own answers.
    """

    clean: Tensor
    """(N, C, H, W)."""
    benign: Tensor
    """(M, C, H, W) of the same scans after changes that must not alarm."""
    attacked: Tensor
    """(L, C, H, W) successful simulated attacks: the protected model's decision changed."""
    sources: Tensor
    """(L,) int64: which clean scan each attack started from."""
    probe: Probe
    seed: int
    """Of everything that is drawn."""
    progress: Progress = lambda _share: None
    wider: Wider | None = None

    @property
    def device(self) -> torch.device:
        """Where the models lie, and where a detector trains."""
        return self.probe.device

    def look(self, images: Tensor, needs: Needs) -> Observation:
        """Observe any number of images (N, C, H, W), at least one, in batches; the result lies on the CPU.

        Seeds of random neighbours follow from the seed of this material and the place of the image.

        Raises:
            InputError: the model gives answers alone, and features are needed.
        """
        if Signal.FEATURES in needs.signals and not self.probe.taps:
            raise InputError("features are needed, and the model gives answers alone")
        seeds = torch.arange(len(images)) + (self.seed << 32)
        parts = zip(torch.split(images, BATCH), torch.split(seeds, BATCH), strict=True)
        here = torch.device("cpu")
        return Observation.joined(
            [
                self.probe.observe(
                    self.probe.span.from_unit(part.to(self.device)), needs, seeds=chosen.to(self.device)
                ).to(here)
                for part, chosen in parts
            ]
        )
