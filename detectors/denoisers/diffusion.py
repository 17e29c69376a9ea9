"""One step of a diffusion model: what noise is most likely here, given its level; for certificates.

Ho et al. 2020, arXiv:2006.11239 (DDPM: predict the noise), in one step as Carlini et al. 2022, arXiv:2206.10550
("(Certified!!) adversarial robustness for free!"): a scan with noise sigma is, times sqrt(abar) = 1 / sqrt(1 +
sigma^2), a state of the diffusion, and one look at it gives the scan back. Trained on clean scans alone, for no model.
Limits: without the noise and the vote of `certificate` it is a denoiser as any other, and broken as they are (Athalye
et al. 2018, arXiv:1802.00420; Lee and Kim 2023, arXiv:2303.09051, for purification by diffusion).
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.denoisers.denoiser import check
from detectors.denoisers.learned import started
from detectors.denoisers.training import CROP, Progress, train
from detectors.denoisers.unet import UNet
from detectors.denoisers.windowed import SPAN, read_span, spelled_span
from detectors.errors import InputError, NotFittedError
from detectors.filters import gaussian
from detectors.models.folding import folded
from detectors.observation import LEVEL, Span
from detectors.precision import training
from detectors.windows import window

SIGMA_LEVELS = 8.0
"""For which noise a denoiser stands that nobody told of another, in grey levels."""
SIGMA_MIN, SIGMA_MAX = 2 * LEVEL, 1.0
"""Noise that is learned, in units of the display window: on the diffusion's scale of -1 to 1 twice as much."""
_EPOCHS = 16


class Diffusion:
    """Takes a scan for one with Gaussian noise of a known level, and gives the expected scan behind it."""

    name = "diffusion"
    version = "1"
    surrogate = None

    def __init__(self, network: "_Network", span: Span, sigma: float = SIGMA_LEVELS * LEVEL) -> None:
        """Hold a trained network.

        Args:
            network: gives the noise.
            span: what black and white are in the model's input.
            sigma: standard deviation of the noise to undo, in units of the display window.

        Raises:
            InputError: a noise that was not learned.
        """
        if not SIGMA_MIN <= sigma <= SIGMA_MAX:
            raise InputError(f"{self.name}: sigma must be from {SIGMA_MIN:.3g} to {SIGMA_MAX:g}, not {sigma:g}")
        self._network = network.eval().requires_grad_(False)
        self._run = folded(self._network)
        self._span, self._sigma = span, sigma

    @classmethod
    def fit(
        cls,
        images: Tensor,
        *,
        span: Span,
        seed: int,
        device: torch.device,
        progress: Progress = lambda _share: None,
    ) -> Self:
        """Learn from clean images what noise looks like on them.

        Args:
            images: (N, C, H, W) clean scans, 0 to 1.
            span: what black and white are in the model's input.
            seed: of weights, order, windows and noise.
            device: where to train.
            progress: told the share of the work that is done.

        Raises:
            InputError: too few images.
        """
        network = started(lambda: _Network(images.shape[1]), seed).to(device)

        def lesson(chosen: Tensor, generator: torch.Generator) -> Tensor:
            clean = images[chosen]
            clean = clean[window(clean, CROP, generator)]
            share = torch.rand(len(clean), 1, 1, 1, generator=generator)
            sigma = SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN) ** share
            noise = torch.randn(clean.shape, generator=generator)
            with training(device):
                found = network((clean + sigma * noise).to(device), sigma.to(device)).float()
            return functional.mse_loss(found, noise.to(device))

        train(network, len(images), lesson, seed=seed, progress=progress, epochs=_EPOCHS)
        return cls(network, span)

    def at(self, sigma: float) -> Self:
        """The same network, for noise of another level, in units of the display window."""
        return type(self)(self._network, self._span, sigma)

    def restore(self, unit: Tensor) -> Tensor:
        """The scans behind noisy ones (N, C, H, W), 0 to 1 but for the noise."""
        sigma = unit.new_full((len(unit), 1, 1, 1), self._sigma)
        noise: Tensor = self._run(unit, sigma)
        return (unit - sigma * noise).clamp(0, 1)

    def __call__(self, images: Tensor) -> Tensor:
        """Denoise (N, C, H, W) images as the model takes them; computed in 32 bits."""
        check(images, len(self._span.low))
        return self._span.from_unit(self.restore(self._span.to_unit(images.float()))).to(images.dtype)

    def state(self) -> dict[str, Tensor]:
        """The network's weights, the level of its noise, and the span (2, C) of its images."""
        noise = torch.tensor(self._sigma, dtype=torch.float64)
        return dict(self._network.state_dict()) | {SPAN: spelled_span(self._span), _SIGMA: noise}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted denoiser again.

        Raises:
            NotFittedError: the state is no such network's.
        """
        weights = dict(state)
        try:
            span, sigma = read_span(weights.pop(SPAN)), float(weights.pop(_SIGMA))
            network = _Network(len(span.low))
            network.load_state_dict(weights)
        except (KeyError, RuntimeError) as error:
            raise NotFittedError(f"{cls.name} lacks {error}") from error
        return cls(network.to(state[SPAN].device), span, sigma)


_SIGMA = "sigma"


class _Network(nn.Module):
    """A U-Net that is shown the state of the diffusion, its fine detail, and how much noise there is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.unet = UNet(2 * channels + 1, channels)

    def forward(self, noisy: Tensor, sigma: Tensor) -> Tensor:
        """The noise of unit variance in (N, C, H, W) scans, 0 to 1, to which `sigma` (N, 1, 1, 1) of it was added."""
        state = (2 * noisy - 1) / torch.sqrt(1 + (2 * sigma).square())
        detail = ((noisy - gaussian(noisy, 2.0)) / sigma).clamp(-8, 8)
        level = torch.log(sigma).expand(-1, 1, *noisy.shape[2:])
        noise: Tensor = self.unet(torch.cat([state, detail, level], 1))
        return noise
