"""One change after another, as one neighbour."""

from torch import Tensor

from detectors.observation import Neighbour


class Chained:
    """The second change of what the first one leaves."""

    def __init__(self, first: Neighbour, second: Neighbour) -> None:
        self.name = f"{first.name}_{second.name}"
        self.surrogate = first.surrogate or second.surrogate
        self.random = first.random or second.random
        self._first, self._second = first, second

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Change (N, C, H, W) images twice."""
        return self._second(self._first(images, seeds), seeds)
