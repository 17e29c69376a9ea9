"""What a decision is and how firmly it is held: one class, several labels, every pixel."""

import pytest
import torch
from torch import Tensor

from detectors.errors import InputError
from detectors.models.outputs import Activation, Task, decided, divergence, margin, to_logits

SHAPES = {Task.MULTICLASS: (5, 3), Task.MULTILABEL: (5, 4), Task.SEGMENTATION: (5, 3, 6, 7)}


def drawn(task: Task, seed: int) -> Tensor:
    return torch.randn(SHAPES[task], generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


@pytest.mark.parametrize("task", Task)
def test_a_model_holds_its_own_decision_and_not_the_opposite(task: Task) -> None:
    logits = drawn(task, 1)

    assert bool((margin(logits, decided(logits, task), task) > 0).all())
    if task is not Task.MULTICLASS:  # the opposite of one of three classes is not one decision
        assert bool((margin(-logits, decided(logits, task), task) < 0).all())


def test_one_label_that_flips_breaks_the_decision_of_several() -> None:
    logits = torch.tensor([[3.0, -2.0, 5.0]])
    flipped = torch.tensor([[3.0, 0.5, 5.0]])

    assert float(margin(flipped, decided(logits, Task.MULTILABEL), Task.MULTILABEL)) == pytest.approx(-0.5)


@pytest.mark.parametrize("task", Task)
def test_the_divergence_is_zero_from_itself_and_positive_from_another(task: Task) -> None:
    own, other = drawn(task, 1), drawn(task, 2)

    assert torch.allclose(divergence(own, own, task), torch.zeros(5, dtype=torch.float64), atol=1e-9)
    assert bool((divergence(own, other, task) > 0).all())


def test_the_divergence_of_labels_is_that_of_independent_coins() -> None:
    own, other = drawn(Task.MULTILABEL, 3), drawn(Task.MULTILABEL, 4)
    p, q = torch.sigmoid(own), torch.sigmoid(other)
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum(1)

    assert torch.allclose(divergence(own, other, Task.MULTILABEL), expected)


def test_probabilities_become_the_logits_that_made_them() -> None:
    labels, mask = drawn(Task.MULTILABEL, 5), drawn(Task.SEGMENTATION, 6)[:, :1]

    assert torch.allclose(to_logits(torch.sigmoid(labels), Activation.SIGMOID, Task.MULTILABEL), labels)
    two = to_logits(torch.sigmoid(mask), Activation.SIGMOID, Task.SEGMENTATION)
    assert two.shape == (5, 2, 6, 7)
    assert torch.allclose(two[:, 1:] - two[:, :1], mask)


@pytest.mark.parametrize("task", Task)
def test_an_output_of_another_shape_is_refused(task: Task) -> None:
    with pytest.raises(InputError, match="axes"):
        to_logits(torch.zeros(2, 3, 4), Activation.NONE, task)
