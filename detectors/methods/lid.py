"""LID: the local intrinsic dimension of a scan among clean ones at every tap, weighed by logistic regression.

Ma et al. 2018, arXiv:1801.02613, on medical images Ma et al. 2021, arXiv:1907.10456: from the distances r_1 ... r_k to
the k nearest clean scans, minus k over the sum of log(r_i / r_k); attacks are said to lie where it is larger. Ours: the
neighbours come from a fixed bank instead of the batch, so that a score depends on nobody else. As there, the regression
sets attacks against clean scans and noise of the same L2 norm. Limits: it is fitted on attacks and knows their kind;
Athalye et al. 2018, arXiv:1802.00420, and Yao et al. 2021, arXiv:2012.09501, evade it. On the small network of its
test: AUROC 1.00 at eight grey levels, 0.65 where the loss holds the score.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from detectors.covariance import FEWEST
from detectors.detector import Score, read_name, spelled
from detectors.errors import InputError, NotFittedError
from detectors.material import Material
from detectors.observation import Needs, Observation, Signal
from detectors.regression import logistic, standardised

NEIGHBOURS = 20
"""The k of the paper."""
BANK_MAX = 1024
"""Clean scans that are kept, drawn by the seed."""
_STRENGTH = 1.0


class LocalDimension:
    """Log-odds that an image was attacked, linear in its local dimension at each tap; without unit."""

    name = "lid"
    version = "1"
    needs = Needs(frozenset({Signal.FEATURES}))

    def __init__(self, state: dict[str, Tensor]) -> None:
        if "taps" not in state:
            raise NotFittedError(f"{self.name} needs the names of its taps")
        self._taps = read_name(state["taps"]).split("\n")
        wanted = {"taps", "centre", "spread", "weights"} | {f"bank{k}" for k in range(len(self._taps))}
        if set(state) != wanted:
            raise NotFittedError(f"{self.name} needs a bank for each tap, centre, spread and weights")
        self._state = state

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Fit on one half of the clean scans as the bank, and the other half, its noise and its attacks as examples.

        A scan in the bank is a neighbour of everything that was made of it, so nothing made of it is an example.
        """
        draw = torch.Generator().manual_seed(material.seed)
        order = torch.randperm(len(material.clean), generator=draw)
        bank, rest = order[: len(order) // 2][:BANK_MAX], order[len(order) // 2 :]
        chosen = torch.isin(material.sources, rest)
        attacked, sources = material.attacked[chosen], material.sources[chosen]
        if len(bank) < 2 * FEWEST or len(attacked) < FEWEST:
            raise InputError(
                f"{len(order)} clean scans and {len(attacked)} attacks on half of them are too few for {cls.name}; at "
                f"least {4 * FEWEST} and {FEWEST} are needed"
            )
        noisy = _as_large(attacked - material.clean[sources], material.clean[sources], draw)
        kept = material.look(material.clean[bank], cls.needs).features
        groups = [material.clean[rest], noisy, attacked]
        dimensions = [_dimensions(material.look(images, cls.needs).features, kept) for images in groups]
        centre, spread = standardised(dimensions[0])
        inputs = (torch.cat(dimensions) - centre) / spread
        target = torch.cat([torch.full((len(group),), float(k == 2)) for k, group in enumerate(groups)])
        calm = float((target == 0).sum())
        importance = torch.where(target == 1, calm / len(attacked), 1.0)
        weights = logistic(inputs.double(), target.double(), importance.double(), strength=_STRENGTH)
        banks = {f"bank{k}": value for k, value in enumerate(kept.values())}
        return cls(
            {"taps": spelled("\n".join(kept)), "centre": centre, "spread": spread, "weights": weights.float()} | banks
        )

    def score(self, seen: Observation) -> Score:
        """Score each image.

        Raises:
            NotFittedError: the observation lacks a tap.
        """
        seen.require_features(self._taps)
        fit = {name: value.to(seen.images.device) for name, value in self._state.items()}
        banks = {tap: fit[f"bank{k}"] for k, tap in enumerate(self._taps)}
        inputs = (_dimensions(seen.features, banks) - fit["centre"]) / fit["spread"]
        return Score(self.name, inputs @ fit["weights"][:-1] + fit["weights"][-1])

    def state(self) -> dict[str, Tensor]:
        """The taps' names, a bank (M, D) for each, centre and spread (L,), weights (L + 1,)."""
        return {name: value.cpu() for name, value in self._state.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        return cls(state)


def _dimensions(features: Mapping[str, Tensor], banks: Mapping[str, Tensor]) -> Tensor:
    """(N, L) logarithm of the local dimension of features at each tap of the banks."""
    columns = []
    for tap, bank in banks.items():
        distances = torch.cdist(features[tap], bank, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.topk(NEIGHBOURS, dim=1, largest=False).values.clamp_min(1e-9)
        ratio = (nearest / nearest[:, -1:]).log().mean(1)
        columns.append(-(-ratio).clamp_min(1e-6).log())
    return torch.stack(columns, 1)


def _as_large(changes: Tensor, clean: Tensor, draw: torch.Generator) -> Tensor:
    """Clean images (N, C, H, W) with Gaussian noise of the L2 norm that each change has."""
    noise = torch.randn(changes.shape, generator=draw)
    norms = [values.flatten(1).norm(dim=1).view(-1, 1, 1, 1) for values in (changes, noise)]
    return torch.clamp(clean + noise * norms[0] / norms[1], 0, 1)
