"""Parts of an image hidden, one at a time: what a model that has no gradient says of where it looks."""

import torch
from torch import Tensor


class Occlusion:
    """One cell of a grid over the image, filled with the image's mean of each channel.

    Zeiler and Fergus 2014, arXiv:1311.2901. The mean and not black: black is a feature of its own in a radiograph.
    """

    surrogate = None
    random = False

    def __init__(self, row: int, column: int, *, of: int) -> None:
        """`row`, `column`: from 0, of a grid of `of` by `of` cells."""
        assert 0 <= row < of
        assert 0 <= column < of
        self.name = f"hidden{row}_{column}_of{of}"
        self._row, self._column, self._of = row, column, of

    def __call__(self, images: Tensor, seeds: Tensor | None = None) -> Tensor:
        """Hide the cell of (N, C, H, W) images, each side at least `of` long."""
        hidden = torch.zeros(images.shape[2:], dtype=torch.bool, device=images.device)
        top, bottom = (place * images.shape[2] // self._of for place in (self._row, self._row + 1))
        left, right = (place * images.shape[3] // self._of for place in (self._column, self._column + 1))
        hidden[top:bottom, left:right] = True
        return torch.where(hidden, images.mean((2, 3), keepdim=True), images)


def grid(of: int) -> tuple[Occlusion, ...]:
    """All cells, row by row."""
    return tuple(Occlusion(row, column, of=of) for row in range(of) for column in range(of))
