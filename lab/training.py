"""Trains a small residual network on greyscale images, and writes it as the ONNX file that a gateway protects."""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import onnx
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gateway.profile import Profile

OPSET = 18


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a classifier is built and trained; the defaults learn 1,300 chest X-rays in about two minutes."""

    widths: tuple[int, ...] = (24, 48, 88, 128)
    """Channels of each stage."""
    blocks: tuple[int, ...] = (2, 2, 2, 1)
    """Residual blocks of each stage."""
    strides: tuple[int, ...] = (2, 2, 2, 2)
    """Of the first block of each stage; the stem halves the image before."""
    epochs: int = 18
    batch: int = 64
    peak_rate: float = 4e-3
    """Largest learning rate of the one-cycle schedule."""
    weight_decay: float = 0.02
    smoothing: float = 0.02
    """Label smoothing."""
    rotation_deg: float = 8.0
    """Standard deviation of the random rotation, as of the next three."""
    scale: float = 0.05
    shift: float = 0.025
    """As a share of the image."""
    gain: float = 0.05
    mirror: bool = False
    """Whether left and right may be exchanged; never where the side matters."""
    pacing: tuple[float, ...] = ()
    """Share of the images, from the front, that each of the first epochs sees; later ones see all. For images in the
    order of their difficulty: curriculum learning (Bengio et al. 2009, doi:10.1145/1553374.1553380)."""

    def seen(self, epoch: int, images: int) -> int:
        """How many of the images epoch 0, 1, ... sees."""
        return round(self.pacing[epoch] * images) if epoch < len(self.pacing) else images

    def steps(self, images: int) -> int:
        """Batches of the whole training; what does not fill one is left for the next epoch's shuffling."""
        return sum(self.seen(epoch, images) // self.batch for epoch in range(self.epochs))


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
    """Train a classifier on labelled images.

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
    """
    recipe = recipe or Recipe()
    _check(images, labels, classes, recipe)
    if watch is None:
        with _bar(recipe.epochs) as report:
            return train_classifier(
                images, labels, classes=classes, recipe=recipe, seed=seed, device=device, checkpoint=checkpoint,
                watch=report,
            )  # fmt: skip
    draws = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # (1) initial weights
        model = Classifier(recipe, images.shape[1], classes).to(device)
    model = cast("Classifier", model.to(memory_format=torch.channels_last))  # type: ignore[call-overload]
    run = _Run.start(model, recipe, steps=recipe.steps(len(images)), device=device)
    digest = _digest(images, labels, recipe, seed)
    first = run.resume(checkpoint, digest, draws) if checkpoint is not None else 0
    for epoch in range(first, recipe.epochs):
        seen = recipe.seen(epoch, len(images))
        loss = _epoch(run, images[:seen], labels[:seen], recipe=recipe, draws=draws, device=device)  # (2) learn
        if checkpoint is not None:
            run.save(checkpoint, digest, draws, epoch + 1)  # (3) remember
        watch(epoch + 1, loss)
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return folded(run.model.cpu().eval())  # (4) ready to serve


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


@dataclass(slots=True)
class _Run:
    """What changes while a classifier learns."""

    model: Classifier
    optimizer: torch.optim.AdamW
    schedule: torch.optim.lr_scheduler.OneCycleLR

    @classmethod
    def start(cls, model: Classifier, recipe: Recipe, *, steps: int, device: str) -> _Run:
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay, fused=device != "cpu"
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_rate, total_steps=steps, pct_start=0.25)
        return cls(model, optimizer, schedule)

    def save(self, path: Path, digest: str, draws: torch.Generator, epoch: int) -> None:
        """Write everything that the next epoch needs; the old file is replaced only by a whole new one."""
        state = {
            "digest": digest,
            "epoch": epoch,
            "draws": draws.get_state(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        part = path.with_suffix(path.suffix + ".part")
        torch.save(state, part)
        part.replace(path)

    def resume(self, path: Path, digest: str, draws: torch.Generator) -> int:
        """Take up a saved training of the same images and recipe, and return how many epochs it has had."""
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True)
        if state["digest"] != digest:
            return 0
        draws.set_state(state["draws"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        return int(state["epoch"])


def _epoch(run: _Run, images: Tensor, labels: Tensor, *, recipe: Recipe, draws: torch.Generator, device: str) -> float:
    """Show every image once, and return the mean loss."""
    kind = torch.device(device).type
    run.model.train()
    total = 0.0
    order = torch.randperm(len(images), generator=draws)
    batches = len(images) // recipe.batch
    for chosen in torch.split(order[: batches * recipe.batch], recipe.batch):
        shown = augmented(images[chosen], recipe, draws).to(device, memory_format=torch.channels_last)
        with torch.autocast(kind, torch.bfloat16, enabled=kind == "cuda" or _fast_bfloat16()):
            logits = run.model(shown)
        loss = functional.cross_entropy(logits.float(), labels[chosen].to(device), label_smoothing=recipe.smoothing)
        run.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        run.optimizer.step()
        run.schedule.step()
        total += float(loss.detach())
    return total / batches


def augmented(images: Tensor, recipe: Recipe, draws: torch.Generator) -> Tensor:
    """Return (N, C, H, W) images each turned, scaled, shifted and brightened a little, outside filled with the edge."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draws)

    count = len(images)
    angle = normal(count) * (recipe.rotation_deg * torch.pi / 180)
    scale = 1 + normal(count) * recipe.scale
    flip = 1 - 2 * (torch.rand(count, generator=draws) < 0.5).float() if recipe.mirror else torch.ones(count)
    cosine, sine = angle.cos() * scale, angle.sin() * scale
    shift = normal(2, count) * (2 * recipe.shift)
    theta = torch.stack(
        [torch.stack([cosine * flip, -sine, shift[0]], 1), torch.stack([sine * flip, cosine, shift[1]], 1)], 1
    )
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    moved = functional.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved * (1 + normal(count, 1, 1, 1) * recipe.gain)


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


def _digest(images: Tensor, labels: Tensor, recipe: Recipe, seed: int) -> str:
    """Return what tells one training from another."""
    told = hashlib.sha256(repr((sorted(asdict(recipe).items()), seed, tuple(images.shape))).encode())
    told.update(images.contiguous().numpy().tobytes())
    told.update(labels.numpy().tobytes())
    return told.hexdigest()


def _fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; elsewhere it would be slower than 32-bit."""
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


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
