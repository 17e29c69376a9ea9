"""Detectors planted in front of a small network: weak ones, which must fall to whoever holds them, and a perfect one.

They read 8-bit images 0 to 1; each is alone in its ensemble, calibrated on clean images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from detectors.calibration import ConformalCalibration, ParetoTail, TailCalibration
from detectors.detector import Detector, Score
from detectors.ensemble import SENSITIVE, Channel, Ensemble, Member
from detectors.filters import gaussian
from detectors.models.outputs import Activation
from detectors.observation import Needs, Observation, Span
from detectors.probe import Probe

FPR = 0.01


class Network:
    """A sequence of layers as the probe asks it; its taps are what each ReLU gives."""

    gradients, output_name = True, "logits"
    device = torch.device("cpu")

    def __init__(self, layers: nn.Sequential) -> None:
        self.layers = layers
        self.tap_names = tuple(str(k) for k, layer in enumerate(layers) if isinstance(layer, nn.ReLU))

    def __call__(self, x: Tensor) -> Tensor:
        return self.forward_with_taps(x, ())[0]

    def forward_with_taps(self, x: Tensor, taps: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        kept = {}
        for k, layer in enumerate(self.layers):
            x = layer(x)
            if str(k) in taps:
                kept[str(k)] = x
        return x, kept

    def to(self, _device: torch.device) -> Self:
        return self

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> Any:
        return self.layers.load_state_dict(state_dict)


class Companion:
    """Another network as a twin."""

    def __init__(self, layers: nn.Sequential) -> None:
        self.network = Network(layers)

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, taps = self.network.forward_with_taps(images, self.network.tap_names[-1:])
        return logits, taps[self.network.tap_names[-1]].flatten(2).mean(2)


class Grain:
    """Weak: how rough an image is. Sign steps roughen it; whoever knows smooths elsewhere, or steps smoothly."""

    name, needs = "grain", Needs()

    def score(self, seen: Observation) -> Score:
        rough = 255 * (seen.images - gaussian(seen.images, 1.0))
        return Score(self.name, rough.square().mean((1, 2, 3)).clamp_min(1e-9).sqrt())

    def state(self) -> dict[str, Tensor]:
        return {}


class Perfect:
    """Knows every clean image, and sees any change at all; no gradient leads past it."""

    name, needs = "perfect", Needs()

    def __init__(self, known: Tensor) -> None:
        self.known = known

    def score(self, seen: Observation) -> Score:
        apart = (seen.images.flatten(1)[:, None] - self.known.flatten(1)[None]).abs().amax(2)
        return Score(self.name, 255 * apart.amin(1))

    def state(self) -> dict[str, Tensor]:
        return {}


def guard(
    layers: nn.Sequential, twins: Mapping[str, nn.Sequential], detector: Detector, clean: Tensor, size: int
) -> Ensemble:
    """The detector in front of the network, calibrated on clean images (N, 1, size, size), 0 to 1."""
    companions = {name: Companion(each) for name, each in twins.items()}
    network = Network(layers)
    probe = Probe(
        network, companions, network.tap_names,
        activation=Activation.NONE, span=Span((0.0,), (1.0,)), size=(size, size),
    )  # fmt: skip
    seeds = torch.arange(len(clean))
    with torch.no_grad():
        scores = detector.score(probe.observe(clean, detector.needs, seeds=seeds)).values
    tail = TailCalibration.fit(scores)
    member = Member(detector, tail, ConformalCalibration.fit(scores, FPR), SENSITIVE)
    channel = Channel(SENSITIVE, 1.0, ParetoTail.fit(tail.surprise(scores)))
    joined = ConformalCalibration.fit(channel.tail.surprise(tail.surprise(scores)), FPR)
    return Ensemble(probe, [member], [channel], joined)
