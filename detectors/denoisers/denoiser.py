"""What every denoiser promises, and what it refuses to look at."""

from typing import Protocol

import torch
from torch import Tensor

from detectors.errors import InputError


class Denoiser(Protocol):
    """A batched image-to-image function that keeps shape, type, depth and gradient.

    What comes out is as finely graded as what went in, and is an image derived from the scan: it goes to the model and
    takes the place of no stored object.
    """

    @property
    def name(self) -> str:
        """The name under which receipts and reports speak of it."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same images would come out differently."""
        ...

    @property
    def surrogate(self) -> str | None:
        """What stands in for the gradient; None where the gradient is the true one."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Denoise (N, C, H, W) images as the model takes them, of any floating type, into images of the same.

        Raises:
            InputError: a shape, a type or values that nothing can be made of.
        """
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that fitting found or settings fix, as tensors; empty where there is nothing."""
        ...


def check(images: Tensor, channels: int | None = None) -> None:
    """Refuse what cannot be denoised; any number of channels will do where None is asked for.

    Raises:
        InputError: says what is wrong.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise InputError(f"images must be (N, C, H, W) with no empty axis, not {tuple(images.shape)}")
    if channels is not None and images.shape[1] != channels:
        raise InputError(f"the images have {images.shape[1]} channels, the denoiser takes {channels}")
    if not images.is_floating_point():
        raise InputError(f"images must be of a floating type, not {images.dtype}")
    if not bool(torch.isfinite(images).all()):
        raise InputError("an image has values that are not finite")
