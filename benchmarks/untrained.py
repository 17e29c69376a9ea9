"""Detectors and denoisers around networks of full size, fitted on noise: they cost what fitted ones cost."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from detectors.calibration import ConformalCalibration, TailCalibration
from detectors.denoisers.denoiser import Denoiser
from detectors.denoisers.dncnn import DnCNN
from detectors.denoisers.median import Median
from detectors.detector import Detector
from detectors.ensemble import GRADIENT, ROBUST, SENSITIVE, WEIGHTS, Channel, Ensemble, Member
from detectors.methods.fusion import Fusion
from detectors.methods.gradient_residual import GradientResidual
from detectors.methods.shifts import PredictionShift
from detectors.methods.twins import COPIED_TWIN, SMALL_TWIN, CopiedTwin, TwinDisagreement
from detectors.methods.uad import FeatureDensity
from detectors.models.outputs import Activation
from detectors.models.reference import Reference
from detectors.models.small import SmallTwin
from detectors.neighbours.defaults import default_neighbours
from detectors.observation import Span
from detectors.probe import Probe

CLASSES, FPR = 2, 0.01
SPAN = Span((0.0,), (1.0,))


@dataclass(frozen=True, slots=True)
class Shape:
    """A residual network for one grey channel, as He et al. 2016, arXiv:1512.03385, give its sizes."""

    name: str
    depths: tuple[int, ...]
    widening: int
    """Of a block's output over its inner layers: 1 for two layers of 3 x 3, 4 for a bottleneck."""
    size: int
    """Rows and columns of its images."""


RESNET18 = Shape("ResNet-18", (2, 2, 2, 2), 1, 128)
RESNET50 = Shape("ResNet-50", (3, 4, 6, 3), 4, 224)


def ensemble(shape: Shape, device: torch.device) -> tuple[Ensemble, dict[str, Denoiser]]:
    """The default detectors and two denoisers around an untrained network, rebuilt from its ONNX file."""
    torch.manual_seed(0)
    reference = Reference.from_onnx(_exported(shape)).to(device)
    twins = {
        COPIED_TWIN: CopiedTwin(reference, Activation.NONE, SPAN).eval(),
        SMALL_TWIN: SmallTwin(1, CLASSES).to(device).eval().requires_grad_(False),
    }
    probe = Probe(
        reference, twins, reference.tap_names, activation=Activation.NONE, span=SPAN, size=(shape.size,) * 2
    )  # fmt: skip
    with torch.no_grad():
        width = twins[COPIED_TWIN].look(torch.zeros(1, 1, shape.size, shape.size, device=device))[1].shape[1]
    homes = {COPIED_TWIN: ROBUST, SMALL_TWIN: ROBUST, Fusion.name: SENSITIVE, GradientResidual.name: GRADIENT}
    members = [
        Member(
            each, _tail(device), ConformalCalibration.fit(torch.randn(400, device=device), FPR), homes.get(each.name)
        )
        for each in _detectors(width, device)
    ]
    channels = [Channel(name, weight, _tail(device)) for name, weight in WEIGHTS.items()]
    whole = Ensemble(probe, members, channels, ConformalCalibration.fit(torch.randn(400, device=device), FPR))
    return whole, {"dncnn": DnCNN(DnCNN.network(1).to(device), SPAN), "median": Median()}


def _tail(device: torch.device) -> TailCalibration:
    return TailCalibration.fit(torch.randn(300, device=device))


def _detectors(width: int, device: torch.device) -> list[Detector]:
    shown = torch.rand(24, 1, 32, 32), torch.randn(24, 1, 32, 32), torch.arange(24) >= 20
    fitted = Fusion.of(*(torch.randn(50, 4 * 2 + len(default_neighbours())) for _ in range(3)))
    density = FeatureDensity.of(torch.randn(200, width), torch.arange(200) % CLASSES, CLASSES)
    return [
        TwinDisagreement(COPIED_TWIN),
        TwinDisagreement(SMALL_TWIN),
        *(PredictionShift(neighbour) for neighbour in default_neighbours()),
        GradientResidual.trained(*shown, [24, 24], calm=20, seed=0, device=device),
        *(type(each).from_state({name: value.to(device) for name, value in each.state().items()})
          for each in (fitted, density)),
    ]  # fmt: skip


def _exported(shape: Shape) -> bytes:
    """The network as an ONNX file, its normalisation folded in as exporters do."""
    file = io.BytesIO()
    images = torch.rand(1, 1, shape.size, shape.size)
    axes = {"image": {0: "n"}}
    torch.onnx.export(ResNet(shape).eval(), (images,), file, input_names=["image"], dynamic_axes=axes, dynamo=False)
    return file.getvalue()


class ResNet(nn.Module):
    """Of that shape, untrained: logits of `CLASSES`."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.stem = nn.Sequential(_layer(1, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        blocks: list[nn.Module] = []
        before = 64
        for stage, depth in enumerate(shape.depths):
            inner = 64 << stage
            for place in range(depth):
                stride = 2 if stage and not place else 1
                blocks.append(_Block(before, inner, inner * shape.widening, stride))
                before = inner * shape.widening
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(before, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 1, H, W) to (N, `CLASSES`)."""
        return cast("Tensor", self.head(self.blocks(self.stem(images)).mean((2, 3))))


class _Block(nn.Module):
    def __init__(self, before: int, inner: int, after: int, stride: int) -> None:
        super().__init__()
        if after == inner:
            layers = [_layer(before, inner, 3, stride), nn.ReLU(), _layer(inner, after, 3, 1)]
        else:
            layers = [_layer(before, inner, 1, 1), nn.ReLU(), _layer(inner, inner, 3, stride), nn.ReLU()]
            layers.append(_layer(inner, after, 1, 1))
        self.inner = nn.Sequential(*layers)
        same = before == after and stride == 1
        self.around: nn.Module = nn.Identity() if same else _layer(before, after, 1, stride)

    def forward(self, values: Tensor) -> Tensor:
        return torch.relu(self.inner(values) + self.around(values))


def _layer(before: int, after: int, size: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after))
