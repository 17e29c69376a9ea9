"""Trains small networks on greyscale images, and writes them as the ONNX files that a gateway protects."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import onnx
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detectors.precision import training
from gateway.profile import Profile
from lab.learning import Batch, Recipe, learn

OPSET = 18


class Classifier(nn.Module):
    """A residual network: a 5x5 stem of stride 2, then stages of two-convolution blocks, then the mean of the image.

    He et al. 2016, arXiv:1512.03385. It is trained without any defence, as most deployed models are, and is as
    brittle: Goodfellow et al. 2015, arXiv:1412.6572.
    """

    def __init__(self, recipe: Recipe, channels: int, classes: int) -> None:
        super().__init__()
        width = recipe.widths[0]
        self.stem = nn.Sequential(nn.Conv2d(channels, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        stages: list[nn.Module] = []
        for out, count, stride in zip(recipe.widths, recipe.blocks, recipe.strides, strict=True):
            for index in range(count):
                stages.append(Block(width, out, stride if index == 0 else 1))
                width = out
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) images to (N, classes) logits."""
        features = self.stages(self.stem(images))
        return cast("Tensor", self.head(features.mean(dim=(2, 3))))


class Block(nn.Module):
    """Two 3x3 convolutions with batch normalisation, and the way around them."""

    def __init__(self, width: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(out)
        self.around: nn.Module = nn.Identity()
        if stride != 1 or width != out:
            self.around = nn.Sequential(nn.Conv2d(width, out, 1, stride, bias=False), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, H, W) to (N, out, H / stride, W / stride)."""
        inner = functional.relu(self.first_norm(self.first(x)))
        return functional.relu(self.second_norm(self.second(inner)) + self.around(x))


@dataclass(frozen=True, slots=True)
class Plain:
    """The labels, and nothing against an attacker."""

    smoothing: float = 0.0

    def __call__(self, network: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy."""
        with training(batch.images.device):
            logits = network(batch.images)
        return functional.cross_entropy(logits.float(), batch.labels, label_smoothing=self.smoothing)


def train_classifier(
    images: Tensor,
    labels: Tensor,
    *,
    classes: int,
    recipe: Recipe | None = None,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: Path | None = None,
    watch: Callable[[int, float], None] | None = None,
) -> Classifier:
    """Train a classifier on labelled images, without any defence.

    The same images, recipe, seed, device and number of threads give the same weights.

    Args:
        images: (N, channels, H, W) float32, as `gateway.pixels.imaging` renders them.
        labels: (N,) int64, each below `classes`.
        classes: how many there are.
        recipe: how to train; None takes the default.
        seed: of the initial weights, the order and the augmentation.
        device: where to train; on a CPU with bfloat16 units the convolutions run in bfloat16.
        checkpoint: file that is written after each epoch, and from which an interrupted training of the same images
            and recipe goes on; removed at the end.
        watch: called after each epoch with its number, from 1, and the mean loss; None shows a progress bar.

    Returns:
        The classifier in evaluation mode on the CPU, batch normalisation folded into the convolutions.

    Raises:
        ValueError: the images or labels do not fit together, or a training without a class.
        DivergedError: the loss is no number any more.
    """
    recipe = recipe or Recipe()
    _check(images, labels, classes, recipe)
    if watch is None:
        with _bar(recipe.epochs) as report:
            return train_classifier(
                images, labels, classes=classes, recipe=recipe, seed=seed, device=device, checkpoint=checkpoint,
                watch=report,
            )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # (1) initial weights
        model = Classifier(recipe, images.shape[1], classes)
    model = learn(
        model, images, labels, Plain(recipe.smoothing),
        recipe=recipe, seed=seed, device=device, checkpoint=checkpoint, watch=watch,
    )  # fmt: skip
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return folded(model)  # (2) ready to serve


def predict(model: nn.Module, images: Tensor, *, batch: int = 64) -> Tensor:
    """Return (N, classes) logits of (N, channels, H, W) images."""
    with torch.inference_mode():
        return torch.cat([model(part) for part in torch.split(images, batch)])


def export(model: nn.Module, profile: Profile) -> bytes:
    """Return the classifier as an ONNX file, weights within, batch axis free.

    Names of input and output are the profile's. What the exporter notes about its own machine (paths of source files)
    is left out, so that the same weights give the same bytes anywhere.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which is not wanted here
    example = torch.zeros(2, profile.input.channels, *profile.input.size)
    batch = torch.export.Dim("batch", min=1, max=65536)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of the exporter about its own parts
        program = torch.onnx.export(
            model.eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[profile.input.name],
            output_names=[profile.output.name or "logits"],
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
    assert program is not None
    proto = onnx.load_from_string(program.model_proto.SerializeToString())
    for item in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info, *proto.graph.input):
        del item.metadata_props[:]
        item.doc_string = ""
    onnx.checker.check_model(proto, full_check=True)
    return cast("bytes", proto.SerializeToString(deterministic=True))


def folded(model: Classifier) -> Classifier:
    """Fold each batch normalisation into the convolution before it, in place, and return the classifier."""
    for part in [model.stem, *model.stages, *(block.around for block in model.stages)]:
        names = dict(part.named_children())
        for convolution, norm in (("0", "1"), ("first", "first_norm"), ("second", "second_norm")):
            if isinstance(names.get(norm), nn.BatchNorm2d):
                setattr(part, convolution, fuse_conv_bn_eval(names[convolution], names[norm]))
                setattr(part, norm, nn.Identity())
    return model.requires_grad_(requires_grad=False)


def _check(images: Tensor, labels: Tensor, classes: int, recipe: Recipe) -> None:
    if images.ndim != 4 or images.dtype != torch.float32:
        raise ValueError(f"images must be (N, channels, H, W) float32, got {tuple(images.shape)} {images.dtype}")
    if labels.shape != (len(images),) or labels.dtype != torch.int64:
        raise ValueError(f"labels must be ({len(images)},) int64, got {tuple(labels.shape)} {labels.dtype}")
    fewest = min(recipe.seen(epoch, len(images)) for epoch in range(recipe.epochs))
    if fewest < recipe.batch:
        raise ValueError(f"training needs at least one batch of {recipe.batch} images in each epoch, got {fewest}")
    present = set(labels.tolist())
    if present != set(range(classes)):
        raise ValueError(f"labels must hold every class from 0 to {classes - 1}, got {sorted(present)}")


class _bar:  # noqa: N801 - used as a function
    """A progress bar on stderr that takes the epoch and the loss."""

    def __init__(self, epochs: int) -> None:
        self._progress = Progress(
            TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.3f}"),
            TimeRemainingColumn(), console=Console(stderr=True),
        )  # fmt: skip
        self._task = self._progress.add_task("training", total=epochs, loss=float("nan"))

    def __enter__(self) -> Callable[[int, float], None]:
        self._progress.start()
        return lambda epoch, loss: self._progress.update(self._task, completed=epoch, loss=loss)

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
