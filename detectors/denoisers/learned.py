"""Denoisers that are networks: one way to train them, to keep them and to run them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, Self, TypeVar

import torch
from torch import Tensor, nn

from detectors.denoisers.denoiser import check
from detectors.denoisers.training import Goal, Progress, Restoration, closeness, train
from detectors.denoisers.windowed import SPAN, read_span, spelled_span
from detectors.errors import NotFittedError
from detectors.models.folding import folded
from detectors.observation import Span


class Learned(ABC):
    """A network from images in 0 to 1 to images in 0 to 1, for images as a model takes them."""

    name: ClassVar[str]
    version: ClassVar[str] = "1"
    surrogate: ClassVar[str | None] = None

    def __init__(self, network: nn.Module, span: Span) -> None:
        self._network = network.eval().requires_grad_(False)
        self._run = folded(self._network)
        self._span = span

    @staticmethod
    @abstractmethod
    def network(channels: int) -> nn.Module:
        """An untrained network for images of so many channels."""

    @classmethod
    def fit(
        cls,
        images: Tensor,
        attacked: Tensor,
        *,
        span: Span,
        seed: int,
        device: torch.device,
        goal: Goal | None = None,
        progress: Progress = lambda _share: None,
    ) -> Self:
        """Learn from clean images to undo noise and small attacks.

        Args:
            images: (N, C, H, W) clean scans, 0 to 1.
            attacked: (N, C, H, W) the same scans as an attacker of the protected model would change them.
            span: what black and white are in the model's input.
            seed: of weights, order, windows and noise.
            device: where to train.
            goal: what is to be restored; by default the pixels.
            progress: told the share of the work that is done.

        Raises:
            InputError: too few images.
        """
        network = started(lambda: cls.network(images.shape[1]), seed).to(device)
        lesson = Restoration(network, images, attacked, goal or closeness(), device)
        train(network, len(images), lesson, seed=seed, progress=progress)
        return cls(network, span)

    def __call__(self, images: Tensor) -> Tensor:
        """Denoise (N, C, H, W) images as the model takes them; computed in 32 bits."""
        check(images, len(self._span.low))
        unit = self._span.to_unit(images.float())
        return self._span.from_unit(self._run(unit).clamp(0, 1)).to(images.dtype)

    def state(self) -> dict[str, Tensor]:
        """The network's weights, and the span (2, C) of its images."""
        return dict(self._network.state_dict()) | {SPAN: spelled_span(self._span)}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted denoiser again.

        Raises:
            NotFittedError: the state is no such network's.
        """
        weights = dict(state)
        try:
            span = read_span(weights.pop(SPAN))
            network = cls.network(len(span.low))
            network.load_state_dict(weights)
        except (KeyError, RuntimeError) as error:
            raise NotFittedError(f"{cls.name} lacks {error}") from error
        return cls(network.to(state[SPAN].device), span)


Network = TypeVar("Network", bound=nn.Module)


def started(build: Callable[[], Network], seed: int) -> Network:
    """A network with the weights that a seed gives it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
