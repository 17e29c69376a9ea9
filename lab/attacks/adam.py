"""Adam without a training loop, for searches whose images leave one by one."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Adam(NamedTuple):
    """The moments of a gradient so far (Kingma and Ba 2015, arXiv:1412.6980); the batch is the first axis."""

    mean: Tensor
    square: Tensor
    steps: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Adam:
        """Return the beginning, for parameters shaped like `x`."""
        return cls(torch.zeros_like(x), torch.zeros_like(x), torch.zeros((), device=x.device))

    def only(self, going: Tensor) -> Adam:
        """Return the moments of those that stay, a mask (N,)."""
        return Adam(self.mean[going], self.square[going], self.steps)

    def after(self, gradient: Tensor) -> tuple[Adam, Tensor]:
        """Return the moments after one more gradient, and the direction to descend."""
        mean = 0.9 * self.mean + 0.1 * gradient
        square = 0.999 * self.square + 0.001 * gradient.square()
        steps = self.steps + 1
        down = (mean / (1 - 0.9**steps)) / ((square / (1 - 0.999**steps)).sqrt() + 1e-8)
        return Adam(mean, square, steps), down
