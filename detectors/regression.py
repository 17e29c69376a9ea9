"""Small regressions with one solution: logistic by Newton's method, ridge in closed form, and a linear head."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from detectors.models.outputs import Task


@dataclass(frozen=True, slots=True)
class Head:
    """A linear map from features to K numbers."""

    centre: Tensor
    """(D,)"""
    spread: Tensor
    """(D,)"""
    weights: Tensor
    """(D + 1, K), the bias last."""

    def __call__(self, features: Tensor) -> Tensor:
        """(N, K) of (N, D) features."""
        standard = (features - self.centre) / self.spread
        return standard @ self.weights[:-1] + self.weights[-1]


def standardised(features: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and spread (D,) of (N, D) features; a feature that never changes is left at its own size."""
    spread = features.std(0)
    return features.mean(0), torch.where(spread > 1e-6, spread, torch.ones_like(spread))


def ridge(features: Tensor, target: Tensor, *, penalty: float) -> Head:
    """Least squares with a penalty on all but the bias.

    Args:
        features: (N, D), N at least 2.
        target: (N, K).
        penalty: added to the variance 1 of each standardised feature.
    """
    features, target = features.double(), target.double()
    centre, spread = standardised(features)
    standard, middle = (features - centre) / spread, target.mean(0)
    gram = standard.T @ standard / len(standard) + penalty * torch.eye(standard.shape[1], dtype=standard.dtype)
    slope = torch.linalg.solve(gram, standard.T @ (target - middle) / len(standard))
    return Head(centre.float(), spread.float(), torch.cat([slope, middle[None]]).float())


def imitation(features: Tensor, logits: Tensor, task: Task, *, penalty: float, rounds: int = 60) -> Head:
    """A head that answers as the given logits do: cross-entropy against their probabilities, without labels.

    Args:
        features: (N, D), N at least 2.
        logits: (N, K) to imitate.
        task: multiclass or multilabel, what the logits decide.
        penalty: of the squared weights, in units of the mean loss.
        rounds: of a deterministic quasi-Newton descent (L-BFGS) on this convex loss.
    """
    features, logits = features.double(), logits.double()
    centre, spread = standardised(features)
    standard = (features - centre) / spread
    many = task is Task.MULTILABEL
    target = torch.sigmoid(logits) if many else torch.softmax(logits, 1)
    weights = torch.zeros(standard.shape[1] + 1, logits.shape[1], dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([weights], max_iter=rounds, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        descent.zero_grad()
        answers = standard @ weights[:-1] + weights[-1]
        if many:
            fit = functional.binary_cross_entropy_with_logits(answers, target, reduction="sum") / len(answers)
        else:
            fit = functional.cross_entropy(answers, target)
        whole = fit + penalty * weights[:-1].square().sum()
        torch.autograd.backward(whole)
        return whole

    descent.step(loss)  # type: ignore[no-untyped-call]
    return Head(centre.float(), spread.float(), weights.detach().float())


def logistic(
    inputs: Tensor, target: Tensor, importance: Tensor, *, strength: float, rising: bool = False
) -> Tensor:  # fmt: skip
    """Ridge logistic regression by Newton's method.

    Where no weight may be below 0, by its projection (Bertsekas 1982, SIAM J. Control Optim. 20, 221): weights that
    stand at 0 and would fall are left out of a step, and a step ends at 0.

    Args:
        inputs: (N, F) float64.
        target: (N,) of 0 and 1.
        importance: (N,) weight of each row.
        strength: inverse strength of the penalty (the C of logistic regression).
        rising: whether no weight but the bias may be below 0, so that the odds fall with no input.

    Returns:
        (F + 1,) weights, the bias last and unpenalised.
    """
    design = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=inputs.dtype)], 1)
    penalty = torch.ones(design.shape[1], dtype=inputs.dtype)
    penalty[-1] = 1e-9
    lowest = torch.full_like(penalty, 0.0 if rising else -math.inf)
    lowest[-1] = -math.inf
    weights = torch.zeros(design.shape[1], dtype=inputs.dtype)

    def loss(candidate: Tensor) -> Tensor:
        odds = design @ candidate
        fit = torch.nn.functional.binary_cross_entropy_with_logits(odds, target, weight=importance, reduction="sum")
        return fit * strength + 0.5 * (penalty * candidate.square()).sum()

    for _ in range(100):
        chance = torch.sigmoid(design @ weights)
        slope = strength * design.T @ (importance * (chance - target)) + penalty * weights
        curvature = strength * (design.T * (importance * chance * (1 - chance))) @ design + torch.diag(penalty)
        free = (weights > lowest) | (slope < 0)
        move = torch.zeros_like(weights)
        move[free] = torch.linalg.solve(curvature[free][:, free], slope[free])
        size = 1.0
        while loss((weights - size * move).maximum(lowest)) > loss(weights) and size > 1e-6:
            size /= 2
        before, weights = weights, (weights - size * move).maximum(lowest)
        if float((weights - before).abs().max()) < 1e-9:
            break
    return weights
