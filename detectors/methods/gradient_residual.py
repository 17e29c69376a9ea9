"""D, the gradient-aligned residual network: a learned matched filter for attacks that follow the model's gradient.

It sees the scan's high-pass residuals, the protected model's input gradient, and their products. Measured with this
project's recipe only; no paper is claimed. Limits: blind to attacks that do not follow the gradient (low-frequency,
Square), and an informed attacker puts it into his loss; so it has a channel of its own.
"""

import math
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.denoisers.median import median3
from detectors.detector import Score
from detectors.errors import InputError, NotFittedError
from detectors.filters import gaussian, wiener3
from detectors.material import Material
from detectors.models.folding import folded
from detectors.observation import LEVEL, Needs, Observation, Signal
from detectors.precision import training
from detectors.windows import window

_RESIDUAL_GAIN, _RESIDUAL_LIMIT = 64.0, 3.0
_WIDTHS, _STRIDES = (16, 24, 32, 32), (1, 2, 2, 2)
_CHANNELS, _HIDDEN = 7, 48
_AIM_GAIN = 10.0
"""Brings the means of the views, which mostly cancel, to the size of those of the layers."""
_CROP, _EPOCHS, _BATCH, _PEAK = 96, 5, 64, 4e-3


class GradientResidual:
    """Log-odds, from a small network, that the residual is aligned with the model's gradient."""

    name = "gradient_residual"
    version = "2"
    needs = Needs(frozenset({Signal.INPUT_GRADIENT}))

    def __init__(self, network: "_Network") -> None:
        self._network = network.eval().requires_grad_(False)
        self._run = folded(self._network)

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Learn to tell attacked scans from the same scans clean and harmlessly changed, noise of an attack's size
        and attacks of other scans among the changes."""

        def pair(images: Tensor) -> tuple[Tensor, Tensor]:
            gradient = material.look(images, cls.needs).input_gradient
            assert gradient is not None
            return images.mean(1, keepdim=True), gradient.mean(1, keepdim=True)

        return cls.trained(
            pair(torch.cat([material.clean, material.benign])), pair(material.attacked),
            seed=material.seed, device=material.device, progress=material.progress,
        )  # fmt: skip

    @classmethod
    def trained(
        cls,
        clean: tuple[Tensor, Tensor],
        attacked: tuple[Tensor, Tensor],
        *,
        seed: int,
        device: torch.device,
        progress: Callable[[float], None] = lambda _share: None,
    ) -> Self:
        """Train the network.

        Args:
            clean: images and their input gradients, both (N, C, H, W).
            attacked: the same of successful attacks.
            seed: of weights, order and crops.
            device: where to train.
            progress: told the share of the work that is done.
        """
        if min(len(clean[0]), len(attacked[0])) < 2:
            raise InputError(f"{len(clean[0])} clean and {len(attacked[0])} attacked scans are too few")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = _Network()
        network.to(device)
        images = torch.cat([clean[0], attacked[0]])
        gradients = torch.cat([clean[1], attacked[1]])
        target = torch.cat([torch.zeros(len(clean[0])), torch.ones(len(attacked[0]))])
        balance = torch.tensor(len(clean[0]) / len(attacked[0]), device=device)
        generator = torch.Generator().manual_seed(seed)
        steps = _EPOCHS * -(-len(images) // _BATCH)
        optimizer = torch.optim.AdamW(network.parameters(), lr=_PEAK, weight_decay=1e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _PEAK, total_steps=steps + 1)
        done = 0
        for _ in range(_EPOCHS):
            for chosen in torch.split(torch.randperm(len(images), generator=generator), _BATCH):
                place = window(images, _CROP, generator)
                views = views_of(images[chosen][place].to(device), gradients[chosen][place].to(device))
                with training(device):
                    odds = network(views).float()
                loss = functional.binary_cross_entropy_with_logits(
                    odds, target[chosen].to(device), pos_weight=balance
                )  # fmt: skip
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                done += 1
                progress(done / steps)
        return cls(network)

    def score(self, seen: Observation) -> Score:
        """Score each image: log-odds, without unit.

        Raises:
            NotFittedError: the observation has no input gradient.
        """
        if seen.input_gradient is None:
            raise NotFittedError(self.name)
        return Score(self.name, self._run(views_of(seen.images, seen.input_gradient)))

    def state(self) -> dict[str, Tensor]:
        """The network's weights and running statistics."""
        return {name: value.cpu() for name, value in self._network.state_dict().items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        network = _Network()
        network.load_state_dict(state)
        return cls(network.to(state["score.0.weight"].device))


class _Network(nn.Module):
    """Four convolutions, the mean of what goes into them and of every layer, and a small head.

    The means of the products are how far residual and gradient are aligned: what sets an attack apart from noise.
    """

    def __init__(self) -> None:
        super().__init__()
        before = (_CHANNELS, *_WIDTHS[:-1])
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            for a, b, stride in zip(before, _WIDTHS, _STRIDES, strict=True)
        )
        self.score = nn.Sequential(nn.Linear(_CHANNELS + sum(_WIDTHS), _HIDDEN), nn.ReLU(), nn.Linear(_HIDDEN, 1))

    def forward(self, views: Tensor) -> Tensor:
        """(N,) log-odds of (N, 7, H, W) views."""
        means = [_AIM_GAIN * views.mean((2, 3))]
        for layer in self.layers:
            views = layer(views)
            means.append(views.mean((2, 3)))
        odds: Tensor = self.score(torch.cat(means, 1))
        return odds[:, 0]


def views_of(images: Tensor, gradients: Tensor) -> Tensor:
    """(N, 7, H, W): three residuals, the gradient, and three products; colour is averaged away."""
    grey, slope = (each if each.shape[1] == 1 else each.mean(1, keepdim=True) for each in (images, gradients))

    def sharp(smooth: Tensor) -> Tensor:
        return ((grey - smooth) * _RESIDUAL_GAIN).clamp(-_RESIDUAL_LIMIT, _RESIDUAL_LIMIT)

    def bounded(values: Tensor) -> Tensor:
        size = torch.linalg.vector_norm(values, dim=(1, 2, 3), keepdim=True) / math.sqrt(values[0].numel())
        return torch.tanh(values * (2 / size.clamp_min(torch.finfo(values.dtype).tiny)))

    r1, r2, r3 = sharp(median3(grey)), sharp(gaussian(grey, 1.0)), sharp(wiener3(grey, 3 * LEVEL))
    t, wide = bounded(slope), bounded(gaussian(slope, 0.8))
    views = (r1, r2, r3, t, r1 * t, r2 * t, r2 * wide)
    return torch.stack([view[:, 0] for view in views], -1).permute(0, 3, 1, 2)  # channels last, as the network runs
