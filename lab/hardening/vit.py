"""A small vision transformer, trained plainly: the other architecture beside the convolutions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lab.hardening.method import RECIPE, Course, Method, Model, Pupil
from lab.learning import Batch, Recipe


class VisionTransformer(nn.Module):
    """Patches as tokens with learnt places, blocks of attention and perceptron, and the mean of the tokens.

    Dosovitskiy et al. 2021, arXiv:2010.11929, without its class token. For images of the size it was built for.
    """

    def __init__(self, channels: int, size: tuple[int, int], classes: int, shape: ViT) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, shape.width, shape.patch, shape.patch)
        count = (size[0] // shape.patch) * (size[1] // shape.patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, count, shape.width))
        self.blocks = nn.Sequential(*(AttentionBlock(shape.width, shape.heads) for _ in range(shape.depth)))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, channels, H, W) images to (N, classes) logits."""
        tokens = self.patches(images * 4 - 2).flatten(2).transpose(1, 2) + self.places
        return cast("Tensor", self.head(self.norm(self.blocks(tokens)).mean(1)))


class AttentionBlock(nn.Module):
    """Attention among tokens, then a perceptron, each normalised before and added to what was there."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.asked, self.mixed = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, width) tokens to as many."""
        _, tokens, width = x.shape
        parts = self.asked(self.first(x)).view(-1, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        weights = torch.softmax(query @ key.transpose(2, 3) / (width // self.heads) ** 0.5, dim=-1)
        x = x + self.mixed((weights @ value).transpose(1, 2).reshape(-1, tokens, width))
        return cast("Tensor", x + self.outer(functional.gelu(self.inner(self.second(x)))))


@dataclass(frozen=True, slots=True, kw_only=True)
class ViT(Method):
    """The labels, by a transformer.

    Ghaffari Laleh et al. 2022, Nature Communications 13, 5711, find transformers far less sensitive than convolutions
    without any defence. Limits: Bai et al. 2021, arXiv:2111.05464, find them no more robust when both are trained
    alike; and attacks on patches go through (Fu et al. 2022, arXiv:2203.08392).
    """

    name: ClassVar[str] = "vit"
    paper: ClassVar[str] = "Ghaffari Laleh et al. 2022, Nature Communications 13, 5711"
    broken_by: ClassVar[str] = "Bai et al. 2021, arXiv:2111.05464"
    limits: ClassVar[str] = "An architecture and no defence: less sensitive at small budgets, misled at larger ones."
    recipe: ClassVar[Recipe] = replace(RECIPE, peak_rate=1e-3, weight_decay=0.05, epochs=30)

    patch: int = 8
    """Pixels; both sides of the image must be a multiple."""
    width: int = 96
    depth: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        super(ViT, self).__post_init__()  # slots=True makes another class of the same name
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads: {self}")

    def loss(self, pupil: Pupil, batch: Batch) -> Tensor:
        """Return the loss of the labels."""
        return pupil.loss(batch.images, batch.labels)

    def network(self, course: Course, _teacher: Model | None) -> nn.Module:
        """Return a transformer; raises ValueError where patches do not fill the image."""
        channels, rows, columns = course.images.shape[1:]
        if rows % self.patch or columns % self.patch:
            raise ValueError(f"{rows} x {columns} pixels are no whole number of patches: {self}")
        return VisionTransformer(channels, (rows, columns), course.classes, self)
