"""Gaussian noise, drawn from each image's own seed."""

from torch import Tensor

from detectors.errors import InputError
from detectors.neighbours.squeezing import spelled_number
from detectors.observation import LEVEL
from detectors.randomness import normal, stream


class Noise:
    """One noisy copy; copies of other numbers, or at other sizes, draw independently from the same seed.

    Cohen et al. 2019, arXiv:1902.02918 (what the vote over such copies promises). Not clipped to the window, so that
    the noise is Gaussian. An attacker averages over draws: Athalye et al. 2018, arXiv:1802.00420 (EOT).
    """

    surrogate = None
    random = True

    def __init__(self, levels: float, copy: int = 0) -> None:
        """`levels`: standard deviation in grey levels of the window; `copy`: which of the copies, from 0."""
        assert levels > 0
        assert copy >= 0
        self.name = f"noise{spelled_number(levels)}_{copy}"
        self._deviation = levels * LEVEL

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Add noise to (N, C, H, W) images; raises `InputError` without their seeds (N,)."""
        if seeds is None:
            raise InputError(f"{self.name} needs seeds")
        drawn = normal(seeds, tuple(images.shape[1:]), stream(self.name))
        return images + self._deviation * drawn.to(images.dtype)
