"""A small residual denoising network, trained on the clean scans of one source.

Zhang et al. 2017, arXiv:1608.03981 (DnCNN: learn the noise, subtract it), on the four sub-images of each 2 x 2 cell as
in Zhang et al. 2018, arXiv:1710.04026, which costs a quarter. Limits: an attacker who differentiates through it
defeats it (Athalye et al. 2018, arXiv:1802.00420); it is a help in the grey zone, never a gate.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.errors import InputError, NotFittedError
from detectors.filters import gaussian
from detectors.observation import LEVEL, Span
from detectors.precision import training

DEPTH, WIDTH = 8, 32
_CROP, _EPOCHS, _BATCH, _PEAK, _NOISE_LEVELS = 64, 8, 32, 2e-3, 4.0
_STEPS_MIN = 150

Attack = Callable[[Tensor], Tensor]
"""Small perturbations of (N, C, H, W) images, 0 to 1, as an attacker of the protected model would make them."""


class DnCNN:
    """Subtracts the noise that a network sees."""

    name = "dncnn"
    version = "1"

    def __init__(self, network: "_Network", span: Span) -> None:
        self._network = network.eval().requires_grad_(False)
        self._span = span

    @classmethod
    def fit(
        cls,
        images: Tensor,
        attack: Attack,
        *,
        span: Span,
        seed: int,
        device: torch.device,
        progress: Callable[[float], None] = lambda _share: None,
    ) -> Self:
        """Learn from clean images to undo noise and small attacks.

        Args:
            images: (N, C, H, W) clean scans, 0 to 1.
            attack: perturbs them; called once on every image.
            span: what black and white are in the model's input.
            seed: of weights, order, crops and noise.
            device: where to train.
            progress: told the share of the work that is done.
        """
        if len(images) < 2:
            raise InputError(f"{len(images)} images are too few to train a denoiser")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Network(images.shape[1])
        network.to(device).train()
        generator = torch.Generator().manual_seed(seed)
        attacked = torch.cat([attack(part.to(device)).cpu() for part in torch.split(images, _BATCH)])
        batches = -(-len(images) // _BATCH)
        epochs = max(_EPOCHS, -(-_STEPS_MIN // batches))
        steps = epochs * batches
        optimizer = torch.optim.AdamW(network.parameters(), lr=_PEAK, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK, total_steps=steps + 1)
        done = 0
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(len(images), generator=generator), _BATCH):
                clean, noisy = _pair(images[chosen], attacked[chosen], generator)
                with training(device):
                    restored = network(noisy.to(device)).float()
                loss = functional.mse_loss(restored / LEVEL, clean.to(device) / LEVEL)
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
                done += 1
                progress(done / steps)
        return cls(network, span)

    def __call__(self, images: Tensor) -> Tensor:
        """Denoise (N, C, H, W) images as the model takes them."""
        return self._span.from_unit(self._network(self._span.to_unit(images)).clamp(0, 1))

    def state(self) -> dict[str, Tensor]:
        """The network's weights, and the span (2, C) of its images."""
        return dict(self._network.state_dict()) | {"span": torch.tensor([self._span.low, self._span.high]).double()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted denoiser again."""
        state = dict(state)
        try:
            low, high = state.pop("span").tolist()
            weight = state["layers.0.weight"]
        except KeyError as error:
            raise NotFittedError(f"dncnn lacks {error}") from error
        network = _Network(weight.shape[1] // 8)
        network.load_state_dict(state)
        return cls(network.to(weight.device), Span(tuple(low), tuple(high)))


class _Network(nn.Module):
    """Convolutions at half the resolution; they see the image and its fine detail, and give the noise in levels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(8 * channels, WIDTH, 3, 1, 1), nn.ReLU()]
        for _ in range(DEPTH - 2):
            layers += [nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
        last = nn.Conv2d(WIDTH, 4 * channels, 3, 1, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(torch.as_tensor(last.bias))
        self.layers = nn.Sequential(*layers, last)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) noisy, 0 to 1, to restored; of any size."""
        rows, columns = images.shape[2:]
        even = functional.pad(images, (0, columns % 2, 0, rows % 2), mode="replicate")
        detail = ((even - gaussian(even, 2.0)) / (4 * LEVEL)).clamp(-8, 8)
        seen = functional.pixel_unshuffle(torch.cat([detail, even * 4 - 2], 1), 2)
        noise = functional.pixel_shuffle(self.layers(seen.contiguous(memory_format=torch.channels_last)), 2) * LEVEL
        return images - noise[..., :rows, :columns]


def _pair(images: Tensor, attacked: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One window of the clean batch, and the same one with noise, with an attack of any strength, or with both."""
    height, width = (min(_CROP, length) for length in images.shape[2:])
    top = int(torch.randint(images.shape[2] - height + 1, (1,), generator=generator))
    left = int(torch.randint(images.shape[3] - width + 1, (1,), generator=generator))
    window = (..., slice(top, top + height), slice(left, left + width))
    clean = images[window]
    each = (len(clean), 1, 1, 1)
    strength = torch.rand(each, generator=generator) * (torch.rand(each, generator=generator) < 2 / 3)
    sigma = torch.rand(each, generator=generator) * _NOISE_LEVELS * LEVEL
    sigma = sigma * (torch.rand(each, generator=generator) < 1 / 2)
    noise = torch.randn(clean.shape, generator=generator) * sigma
    return clean, (clean + strength * (attacked[window] - clean) + noise).clamp(0, 1)
