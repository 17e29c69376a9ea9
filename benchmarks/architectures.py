"""Small networks in the shapes of those that read images: what the converter must rebuild, a few widths wide.

Each takes (N, 1, 64, 64) and gives (N, 3) logits, the U-Nets (N, 2, 64, 64). They are written from the papers' figures;
weights are random and no two tensors share them, since exporters merge equal ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 64


class ResNet(nn.Module):
    """He et al. 2016, arXiv:1512.03385: basic blocks, the stem's pooling, global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        )
        self.blocks = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 12, 2), BasicBlock(12, 16, 2))
        self.pool, self.head = nn.AdaptiveAvgPool2d((1, 1)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) logits."""
        out: Tensor = self.head(torch.flatten(self.pool(self.blocks(self.stem(x))), 1))
        return out


class BasicBlock(nn.Module):
    """Two normalised convolutions and a way around them."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(b), nn.BatchNorm2d(b)])
        plain = stride == 1 and a == b
        self.around = nn.Identity() if plain else nn.Sequential(nn.Conv2d(a, b, 1, stride), nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        """Residual of one stage."""
        y = functional.relu(self.norms[0](self.first(x)), inplace=True)
        y = self.norms[1](self.second(y))
        y += self.around(x)
        return functional.relu(y)


class DenseNet(nn.Module):
    """Huang et al. 2017, arXiv:1608.06993: every layer sees all before it; transitions halve both axes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 8, 7, 2, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        self.layers = nn.ModuleList(DenseLayer(8 + 4 * k) for k in range(3))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2, 2)
        )
        self.last, self.norm, self.head = DenseLayer(10), nn.BatchNorm2d(14), nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) logits."""
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        x = self.transition(x)
        x = functional.relu(self.norm(torch.cat([x, self.last(x)], 1)))
        out: Tensor = self.head(torch.flatten(functional.adaptive_avg_pool2d(x, (1, 1)), 1))
        return out


class DenseLayer(nn.Sequential):
    """Normalise, 1 x 1, normalise, 3 x 3; four maps more."""

    def __init__(self, a: int) -> None:
        super().__init__(
            nn.BatchNorm2d(a), nn.ReLU(), nn.Conv2d(a, 8, 1, bias=False),
            nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1, bias=False), nn.Dropout(0.1),
        )  # fmt: skip


class EfficientNet(nn.Module):
    """Tan and Le 2019, arXiv:1905.11946: inverted bottlenecks, depthwise, squeezed and excited, SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8, eps=1e-3), nn.SiLU(inplace=True)
        )
        self.blocks = nn.Sequential(Bottleneck(8, 8, 3, 1), Bottleneck(8, 12, 5, 2), Bottleneck(12, 12, 3, 1))
        self.top = nn.Sequential(nn.Conv2d(12, 20, 1, bias=False), nn.BatchNorm2d(20, eps=1e-3), nn.Hardswish())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(20, 3))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) logits."""
        out: Tensor = self.head(self.top(self.blocks(self.stem(x))))
        return out


class Bottleneck(nn.Module):
    """Widen, filter each map by itself, weigh the maps by what all of space says, narrow."""

    def __init__(self, a: int, b: int, width: int, stride: int) -> None:
        super().__init__()
        wide = 2 * a
        self.widen = nn.Sequential(nn.Conv2d(a, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6())
        # padded unevenly before a stride, as the original's SAME is
        self.pad = nn.ZeroPad2d((1, 2, 1, 2)) if stride == 2 else nn.ZeroPad2d(width // 2)
        self.filter = nn.Sequential(
            nn.Conv2d(wide, wide, width, stride, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.SiLU()
        )
        self.squeeze, self.excite = nn.Conv2d(wide, 4, 1), nn.Conv2d(4, wide, 1)
        self.narrow = nn.Sequential(nn.Conv2d(wide, b, 1, bias=False), nn.BatchNorm2d(b))
        self.plain = stride == 1 and a == b

    def forward(self, x: Tensor) -> Tensor:
        """Residual where nothing changes size."""
        y = self.filter(self.pad(self.widen(x)))
        weights = self.excite(functional.silu(self.squeeze(y.mean((2, 3), keepdim=True))))
        y = self.narrow(y * torch.sigmoid(weights))
        return x + y if self.plain else y


class ConvNeXt(nn.Module):
    """Liu et al. 2022, arXiv:2201.03545: patches, wide depthwise filters, layer norms on the last axis, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 4, 4), ChannelNorm(8)
        self.first, self.second = nn.Sequential(NextBlock(8), NextBlock(8)), nn.Sequential(NextBlock(12))
        self.down = nn.Sequential(ChannelNorm(8), nn.Conv2d(8, 12, 2, 2))
        self.last, self.head = nn.LayerNorm(12, eps=1e-6), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) logits."""
        x = self.second(self.down(self.first(self.norm(self.stem(x)))))
        out: Tensor = self.head(self.last(x.mean([-2, -1])))
        return out


class ChannelNorm(nn.LayerNorm):
    """Layer norm of the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) normalised over C."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class NextBlock(nn.Module):
    """Depthwise 7 x 7, then two layers on each pixel, scaled, around."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Residual of one block."""
        y = self.layers(self.norm(self.filter(x).permute(0, 2, 3, 1)))
        return x + self.scale * y.permute(0, 3, 1, 2)


class ViT(nn.Module):
    """Dosovitskiy et al. 2021, arXiv:2010.11929: torch's own encoder layers on patches, a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 16, 16)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))
        self.first = nn.TransformerEncoderLayer(16, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
        self.second, self.norm, self.head = Attention(16, 2), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) logits."""
        y = self.patches(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(y.shape[0], -1, -1), y], 1) + self.places
        out: Tensor = self.head(self.norm(self.second(self.first(y)))[:, 0])
        return out


class Attention(nn.Module):
    """Attention as most libraries write it: one matrix for queries, keys and values, then torch's fused function."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, y: Tensor) -> Tensor:
        """(N, tokens, width) residual."""
        n, tokens, width = y.shape
        q, k, v = self.qkv(self.norm(y)).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v)
        return y + self.out(attended.transpose(1, 2).reshape(n, tokens, width))


class Swin(nn.Module):
    """Liu et al. 2021, arXiv:2103.14030: attention in windows, then in shifted ones; patches merge between stages."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(1, 8, 8, 8), nn.LayerNorm(8)
        self.first = nn.Sequential(WindowBlock(8, 8, 0), WindowBlock(8, 8, 2))
        self.merge_norm, self.merge = nn.LayerNorm(32), nn.Linear(32, 16, bias=False)
        self.second, self.last, self.head = WindowBlock(16, 4, 0), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3) logits."""
        x = self.first(self.norm(self.patches(x).permute(0, 2, 3, 1)))  # (N, 8, 8, 8), channels last
        parts = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        x = self.second(self.merge(self.merge_norm(torch.cat(parts, -1))))
        x = self.last(x).permute(0, 3, 1, 2)
        out: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


class WindowBlock(nn.Module):
    """Attention with relative places among the pixels of a window of 4 x 4, with a mask where windows wrap around."""

    WINDOW = 4

    def __init__(self, width: int, side: int, shift: int) -> None:
        super().__init__()
        self.shift, self.side = shift, side
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(approximate="tanh"), nn.Linear(2 * width, width)
        )
        self.table = nn.Parameter(torch.randn((2 * self.WINDOW - 1) ** 2, 2))
        places = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        offsets = places[:, :, None] - places[:, None, :] + self.WINDOW - 1
        self.register_buffer("index", offsets[0] * (2 * self.WINDOW - 1) + offsets[1])
        region = torch.zeros(1, side, side, 1)
        if shift:
            for number, (rows, columns) in enumerate((a, b) for a in _bands(shift) for b in _bands(shift)):
                region[:, rows, columns] = number
        cut = self._windows(region)[:, :, 0]
        self.register_buffer("mask", (cut[:, None] != cut[:, :, None]).float() * -100.0)

    def _windows(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to (N * windows, 16, C)."""
        n, height, width, channels = x.shape
        x = x.view(n, height // 4, 4, width // 4, 4, channels).permute(0, 1, 3, 2, 4, 5)
        return x.contiguous().view(-1, 16, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) residual of attention and of two layers."""
        n, height, width, channels = x.shape
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, shifts=(-self.shift, -self.shift), dims=(1, 2))
        y = self._windows(y)
        q, k, v = self.qkv(y).reshape(y.shape[0], 16, 3, 2, channels // 2).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (channels // 2) ** -0.5) @ k.transpose(-2, -1)
        scores = scores + self.table[self.index.view(-1)].view(16, 16, 2).permute(2, 0, 1).contiguous().unsqueeze(0)
        windows = self.mask.shape[0]
        scores = scores.view(-1, windows, 2, 16, 16) + self.mask.unsqueeze(1).unsqueeze(0)
        attended = torch.softmax(scores.view(-1, 2, 16, 16), -1) @ v
        y = self.out(attended.transpose(1, 2).reshape(-1, 16, channels))
        y = (
            y.view(n, height // 4, width // 4, 4, 4, channels)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(n, height, width, channels)
        )
        if self.shift:
            y = torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2))
        x = x + y
        out: Tensor = x + self.layers(self.norm2(x))
        return out


def _bands(shift: int) -> tuple[slice, slice, slice]:
    return slice(0, -4), slice(-4, -shift), slice(-shift, None)


class UNet(nn.Module):
    """Ronneberger et al. 2015, arXiv:1505.04597: down by pooling, up by transposed convolution, joined by skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.low = _pair(1, 6), _pair(6, 8), _pair(8, 12)
        self.up2, self.up1 = nn.ConvTranspose2d(12, 8, 2, 2), nn.ConvTranspose2d(8, 6, 3, 2, 1, output_padding=1)
        self.join2, self.join1, self.out = _pair(16, 8), _pair(12, 6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, H, W) logits."""
        a = self.first(x)
        b = self.second(functional.max_pool2d(a, 2))
        y = self.up2(self.low(functional.max_pool2d(b, 2)))
        y = self.join2(torch.cat([b, y], 1))
        out: Tensor = self.out(self.join1(torch.cat([a, self.up1(y)], 1)))
        return out


def _pair(a: int, b: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
        nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
    )  # fmt: skip


class SmoothUNet(nn.Module):
    """A U-Net as medical libraries write it: instance and group norms, PReLU, strides down, resampling up."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.PReLU(8))
        self.down = nn.Sequential(nn.Conv2d(8, 12, 3, 2, 1), nn.GroupNorm(4, 12), nn.LeakyReLU(0.01))
        self.low = nn.Sequential(nn.Conv2d(12, 12, 3, 2, 1), nn.InstanceNorm2d(12), nn.PReLU())
        self.gate, self.join, self.out = nn.Conv2d(12, 12, 1), nn.Conv2d(24, 8, 3, padding=1), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2, H, W) logits."""
        a = self.first(x)
        b = self.down(a)
        y = functional.interpolate(self.low(b), size=b.shape[2:], mode="bilinear", align_corners=False)
        y = functional.elu(self.join(torch.cat([b * torch.sigmoid(self.gate(y)), y], 1)))
        y = functional.interpolate(y, scale_factor=2.0, mode="nearest")
        out: Tensor = self.out(torch.cat([a, y], 1))
        return out


SHAPES: dict[str, Callable[[], nn.Module]] = {
    "ResNet": ResNet, "DenseNet": DenseNet, "EfficientNet": EfficientNet, "ConvNeXt": ConvNeXt,
    "ViT": ViT, "Swin": Swin, "U-Net": UNet, "U-Net, smooth": SmoothUNet,
}  # fmt: skip


def made(shape: str) -> nn.Module:
    """A network of that shape, in evaluation mode, with weights and statistics that no two tensors share."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = SHAPES[shape]()
        for tensor in network.parameters():
            spread = 0.2 if tensor.ndim == 1 else (tensor[0].numel() ** -0.5)
            tensor.data = spread * torch.randn(tensor.shape) + (1.0 if tensor.ndim == 1 else 0.0)
        for part in network.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean = 0.2 * torch.randn(part.num_features)
                part.running_var = torch.rand(part.num_features) + 0.5
    return network.eval().requires_grad_(False)
