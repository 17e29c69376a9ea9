"""Promises of the training: it learns, repeats itself, goes on after an interruption, and exports what it learnt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from detectors.augmentation import Augmentation
from detectors.models.reference import Reference
from gateway.profile import Profile
from lab.learning import DivergedError, Recipe
from lab.training import Classifier, export, predict, train_classifier

SMALL = Recipe(widths=(8, 16), blocks=(1, 1), strides=(2, 2), epochs=6, batch=16, peak_rate=1e-2)
PROFILE = Profile.from_toml(
    b"""
name = "discs"
version = "1"
task = "multiclass"
classes = ["none", "disc"]
[input]
name = "picture"
layout = "NCHW"
channels = 1
size = [32, 32]
range = [0.0, 1.0]
[output]
name = "answer"
activation = "softmax"
"""
)


def discs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy pictures, every second one with a bright disc somewhere."""
    draws = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 32, 32, generator=draws) * 0.4
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    labels = torch.arange(count) % 2
    for index in range(1, count, 2):
        row, column = torch.randint(8, 24, (2,), generator=draws).tolist()
        images[index, 0] += 0.5 * ((rows - row) ** 2 + (columns - column) ** 2 < 25)
    return images, labels


def quiet(_epoch: int, _loss: float) -> None:
    """No progress bar in a test."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained() -> Classifier:
    return train_classifier(*discs(256, 0), classes=2, recipe=SMALL, watch=quiet)


def test_it_learns_what_it_is_shown(trained: Classifier) -> None:
    images, labels = discs(200, 99)

    assert float((predict(trained, images).argmax(dim=1) == labels).float().mean()) > 0.95


def test_the_first_epochs_see_only_the_plain_images_in_front() -> None:
    """The share in front is all that is learnt from: labels that contradict it come too late to be seen."""
    images, labels = discs(256, 0)
    contradicted = torch.cat([labels, 1 - labels])
    paced = replace(SMALL, pacing=(0.5,) * SMALL.epochs)
    model = train_classifier(torch.cat([images, images]), contradicted, classes=2, recipe=paced, watch=quiet)

    assert float((predict(model, images).argmax(dim=1) == labels).float().mean()) > 0.95


def test_an_epoch_that_sees_less_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="in each epoch, got 3"):
        train_classifier(*discs(256, 0), classes=2, recipe=replace(SMALL, pacing=(0.01,)), watch=quiet)


def test_the_same_seed_gives_the_same_weights(trained: Classifier) -> None:
    again = train_classifier(*discs(256, 0), classes=2, recipe=SMALL, watch=quiet)

    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))


def test_progress_goes_to_stderr_since_stdout_is_for_documents(capfd: pytest.CaptureFixture[str]) -> None:
    train_classifier(*discs(32, 0), classes=2, recipe=SMALL)

    shown = capfd.readouterr()
    assert not shown.out
    assert "training" in shown.err


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_classifier(*discs(32, 0), classes=2, recipe=SMALL, watch=quiet)

    assert torch.equal(torch.rand(3), expected)


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(trained: Classifier, tmp_path: Path) -> None:
    checkpoint = tmp_path / "state"

    def stop(epoch: int, _loss: float) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(*discs(256, 0), classes=2, recipe=SMALL, checkpoint=checkpoint, watch=stop)
    epochs: list[int] = []
    resumed = train_classifier(
        *discs(256, 0), classes=2, recipe=SMALL, checkpoint=checkpoint, watch=lambda epoch, _: epochs.append(epoch)
    )

    assert epochs == [4, 5, 6]
    assert not checkpoint.exists()
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), resumed.parameters(), strict=True))


def test_a_checkpoint_of_other_images_is_not_taken_up(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state"

    def stop(_epoch: int, _loss: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(*discs(64, 0), classes=2, recipe=SMALL, checkpoint=checkpoint, watch=stop)
    epochs: list[int] = []
    train_classifier(
        *discs(64, 1), classes=2, recipe=SMALL, checkpoint=checkpoint, watch=lambda epoch, _: epochs.append(epoch)
    )

    assert epochs[0] == 1


def test_the_exported_file_answers_as_the_trained_model_does(trained: Classifier) -> None:
    images, _ = discs(33, 7)
    session = onnxruntime.InferenceSession(export(trained, PROFILE), providers=["CPUExecutionProvider"])
    answers = session.run(["answer"], {"picture": images.numpy()})[0]

    assert np.allclose(answers, predict(trained, images).numpy(), atol=1e-4)


def test_the_exported_file_becomes_the_same_differentiable_model(trained: Classifier) -> None:
    images, _ = discs(5, 7)
    reference = Reference.from_onnx(export(trained, PROFILE))
    leaf = images.clone().requires_grad_(True)
    answers = reference(leaf)
    (gradient,) = torch.autograd.grad(answers[:, 0].sum(), leaf)

    assert torch.allclose(answers.detach(), predict(trained, images), atol=1e-4)
    assert float(gradient.abs().max()) > 0


def test_the_exported_file_is_whole_and_names_no_machine(trained: Classifier) -> None:
    written = export(trained, PROFILE)
    proto = onnx.load_from_string(written)

    assert proto.opset_import[0].version == 18
    assert [entry.name for entry in proto.graph.input] == ["picture"]
    assert all(not tensor.external_data for tensor in proto.graph.initializer)
    assert {node.op_type for node in proto.graph.node}.isdisjoint({"BatchNormalization"})
    assert b".py" not in written
    assert written == export(trained, PROFILE)


def test_a_model_can_be_exported_for_any_number_of_images(trained: Classifier) -> None:
    proto = onnx.load_from_string(export(trained, PROFILE))

    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param


def test_augmentation_keeps_shape_and_brightness_about_right() -> None:
    images, _ = discs(64, 3)
    moved = Augmentation(mirror=True)(images, torch.Generator().manual_seed(0))

    assert moved.shape == images.shape
    assert abs(float(moved.mean() - images.mean())) < 0.05
    assert not torch.equal(moved, images)


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(64, 32, 32), torch.zeros(64, dtype=torch.int64), "channels, H, W"),
        (torch.zeros(64, 1, 32, 32), torch.zeros(60, dtype=torch.int64), "labels must be"),
        (torch.zeros(8, 1, 32, 32), torch.arange(8) % 2, "at least one batch"),
        (torch.zeros(64, 1, 32, 32), torch.zeros(64, dtype=torch.int64), "every class"),
        (torch.zeros(64, 1, 32, 32), torch.arange(64) % 3, "every class"),
    ],
)
def test_unusable_data_is_refused(images: Tensor, labels: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        train_classifier(images, labels, classes=2, recipe=SMALL, watch=quiet)


def test_a_running_mean_of_the_weights_goes_on_after_an_interruption(tmp_path: Path) -> None:
    averaged = replace(SMALL, averaging=0.9)
    whole = train_classifier(*discs(256, 0), classes=2, recipe=averaged, watch=quiet)

    def stop(epoch: int, _loss: float) -> None:
        if epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier(*discs(256, 0), classes=2, recipe=averaged, checkpoint=tmp_path / "state", watch=stop)
    resumed = train_classifier(
        *discs(256, 0), classes=2, recipe=averaged, checkpoint=tmp_path / "state", watch=quiet
    )  # fmt: skip
    last = train_classifier(*discs(256, 0), classes=2, recipe=SMALL, watch=quiet)

    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not torch.equal(whole.head.weight, last.head.weight)
    images, labels = discs(200, 99)
    assert float((predict(whole, images).argmax(dim=1) == labels).float().mean()) > 0.95


def test_a_loss_that_is_no_number_is_named_at_once() -> None:
    images, labels = discs(64, 0)
    images[5, 0, 3, 3] = torch.nan
    epochs: list[int] = []

    with pytest.raises(DivergedError, match="epoch 1"):
        train_classifier(images, labels, classes=2, recipe=SMALL, watch=lambda epoch, _: epochs.append(epoch))

    assert epochs == []
