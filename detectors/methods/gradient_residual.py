"""D, the gradient-aligned residual network: a learned matched filter for attacks that follow the model's gradient.

It sees the scan's high-pass residuals, the protected model's input gradient, and their products. Measured with this
project's recipe only; no paper is claimed. Limits: blind to attacks that do not follow the gradient (low-frequency,
Square); an informed attacker puts it into his loss; so it has a channel of its own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.calibration import TailCalibration
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
    """How unusual it is, in nats, for the residual to be so aligned with the model's gradient.

    Two networks of one kind. The first learns attacks that follow the gradient as it is, and hardly takes a clean scan
    for one; the second also those that follow it smoothed, and scans that the model was not trained on, and takes
    more. Each is measured by what it makes of the clean scans that both learnt from, and the more surprised one
    speaks: about half of their share of false alarms is left to the first, less where the second learnt those scans by
    heart. Limits, besides: gradients smoothed more widely than the second has learnt pass it.
    """

    name = "gradient_residual"
    version = "3"
    needs = Needs(frozenset({Signal.INPUT_GRADIENT}))

    def __init__(self, networks: Sequence["_Network"], tails: TailCalibration) -> None:
        self._networks = nn.ModuleList(networks).eval().requires_grad_(False)
        self._tails = tails
        self._runs = [folded(network) for network in networks]

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Learn to tell attacked scans from the same scans clean and harmlessly changed, noise of an attack's size
        and attacks of other scans among the changes."""
        groups = [material.clean, material.benign, material.attacked]
        ends = [sum(map(len, groups))]
        if material.wider is not None:
            groups += [material.wider.benign, material.wider.attacked]
            ends.append(sum(map(len, groups)))
        pairs = [_grey(material.look(group, cls.needs)) for group in groups]
        images, gradients = (torch.cat(each) for each in zip(*pairs, strict=True))
        attacked = torch.cat([torch.full((len(group),), place in (2, 4)) for place, group in enumerate(groups)])
        return cls.trained(
            images, gradients, attacked, ends,
            calm=len(material.clean), seed=material.seed, device=material.device, progress=material.progress,
        )  # fmt: skip

    @classmethod
    def trained(
        cls,
        images: Tensor,
        gradients: Tensor,
        attacked: Tensor,
        ends: Sequence[int],
        *,
        calm: int,
        seed: int,
        device: torch.device,
        progress: Callable[[float], None] = lambda _share: None,
    ) -> Self:
        """Train the networks.

        Args:
            images: (N, 1, H, W), 0 to 1.
            gradients: (N, 1, H, W), the input gradients.
            attacked: (N,) bool; the others must not alarm.
            ends: of each network, how many it is shown, from the front.
            calm: how many, from the front, are clean scans as they are, at least 20: they make the networks comparable.
            seed: of weights, order and crops.
            device: where to train.
            progress: told the share of the work that is done.

        Raises:
            InputError: too few scans of a kind.
        """
        if calm < 20:
            raise InputError(f"{calm} clean scans are too few to compare networks by; at least 20 are needed")
        networks = []
        for place, end in enumerate(ends):

            def shared(share: float, before: int = place) -> None:
                progress((before + share) / len(ends))

            networks.append(
                _trained(
                    images[:end], gradients[:end], attacked[:end], seed=seed + place, device=device, progress=shared
                )
            )
        runs = [folded(network) for network in networks]
        with torch.no_grad():
            parts = zip(torch.split(images[:calm], _BATCH), torch.split(gradients[:calm], _BATCH), strict=True)
            odds = torch.cat([_odds(runs, image.to(device), slope.to(device)) for image, slope in parts], 1)
        return cls(networks, TailCalibration.together([TailCalibration.fit(each) for each in odds]))

    def score(self, seen: Observation) -> Score:
        """Score each image: minus the logarithm of a tail probability, which orders and does not promise.

        Raises:
            NotFittedError: the observation has no input gradient.
        """
        if seen.input_gradient is None:
            raise NotFittedError(self.name)
        return Score(self.name, self._tails.surprise(_odds(self._runs, seen.images, seen.input_gradient)).amax(0))

    def state(self) -> dict[str, Tensor]:
        """The networks' weights and running statistics, and their tails on clean scans."""
        kept = {**self._networks.state_dict(), **self._tails.state()}
        return {name: value.cpu() for name, value in kept.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        tails = TailCalibration.from_state(state)
        weights = {name: value for name, value in state.items() if name not in tails.state()}
        networks = nn.ModuleList([_Network() for _ in range(len(state["knots"]))])
        networks.load_state_dict(weights)
        return cls([*networks.to(state["knots"].device)], tails)


def _grey(seen: Observation) -> tuple[Tensor, Tensor]:
    """(N, 1, H, W) each: images and input gradients, the mean of their channels."""
    assert seen.input_gradient is not None
    return seen.images.mean(1, keepdim=True), seen.input_gradient.mean(1, keepdim=True)


def _odds(runs: Sequence["_Network"], images: Tensor, gradients: Tensor) -> Tensor:
    """(D, N) float32: what each network makes of (N, C, H, W) images."""
    views = views_of(images, gradients)
    return torch.stack([run(views) for run in runs]).float()


def _trained(
    images: Tensor, gradients: Tensor, attacked: Tensor, *, seed: int, device: torch.device,
    progress: Callable[[float], None],
) -> "_Network":  # fmt: skip
    """A network that tells these apart."""
    loud = int(attacked.sum())
    if min(loud, len(images) - loud) < 2:
        raise InputError(f"{len(images) - loud} clean and {loud} attacked scans are too few")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _Network()
    network.to(device)
    target = attacked.float()
    balance = torch.tensor((len(images) - loud) / loud, device=device)
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
            loss = functional.binary_cross_entropy_with_logits(odds, target[chosen].to(device), pos_weight=balance)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
            done += 1
            progress(done / steps)
    return network


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
