"""Block agreement: how far what shallow heads read from early blocks is from what the model answers, and they differ.

Almalik et al. 2022, arXiv:2208.02851 (SEViT): a head on the tokens of each of the first blocks of a vision
transformer; the score is the Frobenius norm of the matrix of divergences between every two answers, the model's among
them. Ours: the heads are linear, on pooled tokens or maps, and learn the protected model's own answers without labels,
so that any network with blocks has them. Limits: shown against attackers who do not know the heads; one who does puts
them into his loss (Tramer et al. 2020, arXiv:2002.08347). A scan that is hard for early blocks is suspicious to it.
On the small network of its test: AUROC 0.97 at four grey levels, but 0.28 at eight, which reach the early blocks too.
"""

from itertools import permutations
from typing import Self

import torch
from torch import Tensor

from detectors.covariance import FEWEST
from detectors.detector import Score, read_name, spelled
from detectors.errors import InputError, NotFittedError
from detectors.material import Material
from detectors.models.outputs import divergence
from detectors.observation import Needs, Observation, Signal
from detectors.regression import Head, imitation

_PENALTY = 1e-3
_LAST = 2
"""The last map and its mean say what the model says."""


class BlockAgreement:
    """Frobenius norm of the divergences between the answers of the early blocks' heads and of the model; nats."""

    name = "block_agreement"
    version = "1"
    needs = Needs(frozenset({Signal.FEATURES}))

    def __init__(self, state: dict[str, Tensor]) -> None:
        if "taps" not in state:
            raise NotFittedError(f"{self.name} needs the names of its taps")
        self._taps = read_name(state["taps"]).split("\n")
        wanted = {f"{part}{k}" for k in range(len(self._taps)) for part in ("centre", "spread", "weights")}
        if set(state) != wanted | {"taps"}:
            raise NotFittedError(f"{self.name} needs a head for each tap")
        self._state = state

    @classmethod
    def fit(cls, material: Material) -> Self:
        """Teach each head, on clean and harmlessly changed scans, to answer as the protected model does there."""
        if len(material.clean) < FEWEST:
            raise InputError(f"{len(material.clean)} clean scans are too few for heads; at least {FEWEST} are needed")
        seen = material.look(torch.cat([material.clean, material.benign]), cls.needs)
        logits, task = seen.answer
        taps = list(seen.features)[:-_LAST] or list(seen.features)[:1]
        state = {"taps": spelled("\n".join(taps))}
        for k, tap in enumerate(taps):
            head = imitation(seen.features[tap], logits, task, penalty=_PENALTY)
            state |= {f"centre{k}": head.centre, f"spread{k}": head.spread, f"weights{k}": head.weights}
        return cls(state)

    def score(self, seen: Observation) -> Score:
        """Score each image.

        Raises:
            NotFittedError: the observation lacks a tap.
        """
        seen.require_features(self._taps)
        fit = {name: value.to(seen.images.device) for name, value in self._state.items()}
        logits, task = seen.answer
        answers = [logits]
        for k, tap in enumerate(self._taps):
            answers.append(Head(fit[f"centre{k}"], fit[f"spread{k}"], fit[f"weights{k}"])(seen.features[tap]))
        each = torch.stack([divergence(one, other, task).square() for one, other in permutations(answers, 2)])
        return Score(self.name, each.sum(0).clamp_min(1e-12).sqrt())

    def state(self) -> dict[str, Tensor]:
        """The taps' names; for each, centre and spread (D,) and weights (D + 1, K)."""
        return {name: value.cpu() for name, value in self._state.items()}

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """The fitted detector again."""
        return cls(state)
