"""What every denoiser promises."""

from typing import Protocol

from torch import Tensor


class Denoiser(Protocol):
    """A batched image-to-image function that keeps shape, range and gradient."""

    @property
    def name(self) -> str:
        """The name under which receipts and reports speak of it."""
        ...

    @property
    def version(self) -> str:
        """Changes whenever the same images would come out differently."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Denoise (N, C, H, W) float images into images of the same shape and range."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Everything that fitting found, as tensors; empty where nothing is fitted."""
        ...
