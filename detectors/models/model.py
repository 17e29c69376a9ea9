"""The protected model as detectors ask it, whatever kind of file it came from."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import torch
from torch import Tensor


class ReferenceModel(Protocol):
    """Answers with what the served model answers; most kinds carry gradients and features too."""

    @property
    def gradients(self) -> bool:
        """Whether gradients pass, weights can be copied and taps exist; if not, there are answers alone."""
        ...

    @property
    def output_name(self) -> str:
        """Which output it computes."""
        ...

    @property
    def tap_names(self) -> tuple[str, ...]:
        """By default: what the last layer before global pooling gives, and the pooled features; none without."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """The model's output for (N, C, H, W) images."""
        ...

    def forward_with_taps(self, x: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """The model's output, and the values that the named nodes give on the way.

        Raises:
            InputError: no node has such a name.
            ConversionError: the graph cannot be computed for these images.
        """
        ...

    def to(self, device: torch.device) -> Self:
        """The same on another device."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any:
        """Take other weights: a twin's."""
        ...
