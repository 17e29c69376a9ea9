"""The small twin's network: a quarter of the protected model's cost, and for every task."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.errors import NotFittedError
from detectors.models.folding import lay_out
from detectors.models.outputs import Task

_DEPTHS = (2, 2, 2, 1)


class SmallTwin(nn.Module):
    """twinS: a residual network, trained from scratch; of a segmentation with a way back up to the pixels.

    The way up is that of a feature pyramid (Lin et al. 2017, arXiv:1612.03144): each stage, brought to one width, is
    added to the enlarged sum of those below it.
    """

    def __init__(self, channels: int, classes: int, width: int = 16, task: Task = Task.MULTICLASS) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width, 6 * width)
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 5, 2, 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )  # fmt: skip
        blocks: list[nn.Module] = []
        before = width
        for after, depth in zip(widths, _DEPTHS, strict=True):
            blocks += [_Block(before if k == 0 else after, after, 2 if k == 0 else 1) for k in range(depth)]
            before = after
        self.body = nn.Sequential(*blocks)
        self.head: nn.Module
        if task is Task.SEGMENTATION:
            self.level = nn.ModuleList(nn.Conv2d(each, 2 * width, 1) for each in (width, *widths))
            self.head = nn.Conv2d(2 * width, classes, 3, 1, 1)
        else:
            self.head = nn.Linear(before, classes)
        self._task = task
        lay_out(self)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, in the form that the task has them."""
        return self.look(images)[0]

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and features (N, D)."""
        stages = [self.stem(images * 4 - 2)]
        place = 0
        for depth in _DEPTHS:
            stages.append(self.body[place : place + depth](stages[-1]))
            place += depth
        features = stages[-1].mean((2, 3))
        if self._task is not Task.SEGMENTATION:
            return self.head(features), features
        summed = self.level[-1](stages[-1])
        for level, stage in zip(list(self.level)[-2::-1], stages[-2::-1], strict=True):
            summed = level(stage) + _enlarged(summed, stage)
        return _enlarged(self.head(torch.relu(summed)), images), features

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Self:
        """Rebuild the network whose weights these are."""
        try:
            stem, head = state["stem.0.weight"], state["head.weight"]
        except KeyError as error:
            raise NotFittedError(f"twinS lacks {error}") from error
        task = Task.SEGMENTATION if head.ndim == 4 else Task.MULTICLASS
        twin = cls(stem.shape[1], head.shape[0], stem.shape[0], task)
        twin.load_state_dict(state)
        return twin


class _Block(nn.Module):
    """Two normalised convolutions and a way around them."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        same = stride == 1 and channels == width
        self.around: nn.Module = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, width, H / stride, W / stride)."""
        y = torch.relu(self.norm1(self.first(x)))
        return torch.relu(self.norm2(self.second(y)) + self.around(x))


def _enlarged(values: Tensor, like: Tensor) -> Tensor:
    """A map (N, D, h, w) at the rows and columns of another."""
    return functional.interpolate(values, like.shape[2:], mode="bilinear", align_corners=False)
