"""Explanation-based anomaly by an autoencoder: clean maps can be drawn again from little, others less well.

Watson and Al Moubayed 2021, arXiv:2105.01959: a convolutional autoencoder trained on clean maps alone, its error the
anomaly. As there, maps keep their size, of which the error tells as much as of their form: what leads an attack is a
larger gradient. Ours is smaller, on gradient x input pooled to 32 x 32 instead of GradientShap, its error compared with
that of clean scans of the same predicted class. On two small victims of ours AUROC 1.0 and .97 for PGD of 2 and 3 grey
levels that knows nothing of it; their 88 % on MIMIC-CXR rests on confounds (see `explanation`) and is not to be
expected. Limits: attacks far past the boundary have small maps again (.54 at 8 levels on one of the two), and
maps can be steered at will: an attacker who softens the network's kinks to do so takes it below .1 (Dombrowski et al.
2019, arXiv:1906.07983).
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.detector import Score
from detectors.errors import InputError
from detectors.material import Material
from detectors.methods.explanation import gradient_map
from detectors.observation import Needs, Observation, Signal
from detectors.precision import training

_SIDE, _STEPS, _BATCH, _PEAK, _LEAST = 32, 400, 32, 3e-3, 20


class ExplanationAutoencoder:
    """How much worse a map is drawn again than clean maps of its class: in standard deviations of the log error."""

    name = "explanation_autoencoder"
    version = "2"
    needs = Needs(frozenset({Signal.INPUT_GRADIENT}))

    def __init__(self, network: nn.Module, unit: Tensor, centre: Tensor, spread: Tensor) -> None:
        self._network = network.eval().requires_grad_(False)
        self._unit, self._centre, self._spread = unit, centre, spread

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Train on four clean maps of five; the errors of the fifth say what is usual."""
        if len(material.clean) < _LEAST:
            raise InputError(f"{len(material.clean)} clean scans are too few for an autoencoder; {_LEAST} are needed")
        seen = material.look(material.clean, cls.needs)
        maps, place = _pooled(seen).to(material.device), torch.arange(len(seen.images))
        unit = maps[place % 5 != 0].square().mean().sqrt().clamp_min(1e-12)
        maps = maps / unit
        network = _trained(maps[place % 5 != 0], material)
        with torch.no_grad():
            errors, groups = _errors(network, maps).cpu(), seen.groups
        kept = [place[(place % 5 == 0) & (groups == group)] for group in range(seen.group_count)]
        members = [errors[chosen] if len(chosen) >= 5 else errors[place % 5 == 0] for chosen in kept]
        centre = torch.stack([each.mean() for each in members])
        spread = torch.stack([each.std() for each in members]).clamp_min(1e-3)
        return cls(network, unit, centre.to(material.device), spread.to(material.device))

    def score(self, seen: Observation) -> Score:
        """Score each image.

        Raises:
            NotFittedError: the observation has no input gradient.
        """
        errors = _errors(self._network, _pooled(seen) / self._unit)
        return Score(self.name, (errors - self._centre[seen.groups]) / self._spread[seen.groups])

    def state(self) -> dict[str, Tensor]:
        """Weights, the unit of the maps, and mean and deviation of each class."""
        found = {"unit": self._unit, "centre": self._centre, "spread": self._spread}
        found |= {f"network.{name}": value for name, value in self._network.state_dict().items()}
        return {name: value.cpu() for name, value in found.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        network = _network()
        network.load_state_dict(
            {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
        )
        return cls(network.to(state["centre"].device), state["unit"], state["centre"], state["spread"])


def _network() -> nn.Sequential:
    """3 x 3 convolutions to 16 and 4 channels, each halved in size, and back."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 4, 3, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(4, 16, 2, 2), nn.ReLU(), nn.ConvTranspose2d(16, 1, 2, 2),
    )  # fmt: skip


def _trained(maps: Tensor, material: Material) -> nn.Sequential:
    generator = torch.Generator().manual_seed(material.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(material.seed)
        network = _network().to(material.device)
    optimizer = torch.optim.Adam(network.parameters(), lr=_PEAK)
    for step in range(_STEPS):
        chosen = torch.randint(len(maps), (_BATCH,), generator=generator).to(maps.device)
        with training(material.device):
            drawn = network(maps[chosen]).float()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward((drawn - maps[chosen]).square().mean())
        optimizer.step()
        material.progress((step + 1) / _STEPS)
    return network


def _pooled(seen: Observation) -> Tensor:
    """(N, 1, 32, 32) maps, as large as they are."""
    return functional.adaptive_avg_pool2d(gradient_map(seen), _SIDE)


def _errors(network: nn.Module, maps: Tensor) -> Tensor:
    """(N,) logarithm of the mean squared error."""
    drawn: Tensor = network(maps)
    return ((drawn - maps).square().mean((1, 2, 3)) + 1e-12).log()
