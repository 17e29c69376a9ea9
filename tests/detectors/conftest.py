"""One small real site for all detectors: a trained victim, its hardened twins, material to fit on and scans to test."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from detectors.detector import Detector, Method
from detectors.material import Material
from detectors.methods.twins import COPIED_TWIN, SMALL_TWIN, CopiedTwin, Hardening, SmallTwin, harden
from detectors.models.outputs import Activation, margin
from detectors.models.reference import Reference
from detectors.observation import LEVEL, Span
from detectors.perturb import ascend
from detectors.probe import Probe
from lab.development import descend, harmless, simulate
from lab.workbench import logits_of

SPAN = Span((-1.0,), (1.0,))
SIZE = 32
CPU = torch.device("cpu")
QUICK = Hardening(0.5, 4.0, 160, 3e-3, batch=32)


class Victim(nn.Module):
    """Four convolutions, batch normalisation folded away by the exporter, and a linear head on their mean."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths, before = (12, 24, 32, 32), 1
        layers: list[nn.Module] = []
        for width, stride in zip(widths, (1, 2, 2, 1), strict=True):
            layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body, self.head = nn.Sequential(*layers), nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).mean((2, 3)))
        return logits


def pictures(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, 1, 32, 32) in whole grey levels, 0 to 1: a spot on noise, plain, or faintly striped across or along."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    y, x, size, phase = (torch.rand(4, count, 1, 1, generator=draw) * torch.tensor([16, 16, 4, 4]).view(4, 1, 1, 1)) + (
        torch.tensor([8, 8, 4, 0]).view(4, 1, 1, 1)
    )
    spot = 60 * torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / size**2)
    along = torch.where(labels.view(-1, 1, 1) == 1, rows, columns)
    stripes = (labels.view(-1, 1, 1) > 0) * 8 * torch.sin(2 * torch.pi * (along + phase) / 4)
    grey = 80 + spot + stripes + 4 * torch.randn(count, SIZE, SIZE, generator=draw)
    return (grey.round().clamp(0, 255) * LEVEL)[:, None], labels


def _trained(images: Tensor, labels: Tensor, *, epochs: int) -> Victim:
    torch.manual_seed(0)
    victim = Victim(int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(victim.parameters(), lr=4e-3, weight_decay=1e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(images), generator=draw), 40):
            loss = functional.cross_entropy(victim(SPAN.from_unit(images[chosen])), labels[chosen])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    return victim.eval()


def _exported(victim: nn.Module) -> bytes:
    file = io.BytesIO()
    torch.onnx.export(
        victim, (torch.zeros(2, 1, SIZE, SIZE),), file, dynamo=False, opset_version=17,
        input_names=["image"], output_names=["answer"], dynamic_axes={"image": {0: "n"}},
    )  # fmt: skip
    return file.getvalue()


@dataclass
class Site:
    """Everything a test of a detector needs; images are (N, 1, 32, 32), 0 to 1."""

    model: bytes
    """The ONNX file that is protected."""
    probe: Probe
    material: Material
    test: Tensor
    """Clean scans that nothing was fitted on, all of which the victim decides rightly."""
    _fitted: dict[str, Detector] = field(default_factory=dict)
    _attacked: dict[float, Tensor] = field(default_factory=dict)

    def fitted(self, method: Method) -> Detector:
        """The method's detector, fitted once for all tests."""
        if method.name not in self._fitted:
            self._fitted[method.name] = method.fit(self.material)
        return self._fitted[method.name]

    def attacked(self, levels: float) -> Tensor:
        """Successful attacks on the test scans that know nothing of detectors (PGD on the margin, 10 steps)."""
        if levels not in self._attacked:
            images, success = descend(
                logits_of(self.probe), self.test, levels=levels, steps=10, device=CPU, seed=5
            )  # fmt: skip
            self._attacked[levels] = images[success]
        return self._attacked[levels]

    def scores(self, detector: Detector, images: Tensor) -> Tensor:
        """(N,) what the detector says of each image."""
        return detector.score(self.material.look(images, detector.needs)).values

    def auroc(self, detector: Detector, images: Tensor) -> float:
        """How often an image scores above a clean test scan; ties count half."""
        calm, loud = self.scores(detector, self.test), self.scores(detector, images)
        above = (loud[:, None] > calm).double() + 0.5 * (loud[:, None] == calm).double()
        return float(above.mean())

    def tpr(self, detector: Detector, images: Tensor, fpr: float = 0.05) -> float:
        """Share of images above the threshold that a share `fpr` of the clean test scans exceeds."""
        limit = self.scores(detector, self.test).quantile(1 - fpr)
        return float((self.scores(detector, images) > limit).double().mean())

    def evaded(self, detector: Detector, *, levels: float, steps: int = 40) -> Tensor:
        """Successful attacks on sixty test scans by somebody who knows the detector and what it says of clean scans.

        He climbs a capped margin minus what the score exceeds the clean median by; the excess counts by its logarithm,
        so that neither aim drowns the other.
        """
        clean = self.test[:60]
        middle, high = self.scores(detector, self.test).float().quantile(torch.tensor([0.5, 0.95]))
        with torch.no_grad():
            classes = logits_of(self.probe)(clean).argmax(1)
        seeds = torch.arange(len(clean))

        def loss(unit: Tensor) -> Tensor:
            seen = self.probe.observe(SPAN.from_unit(unit), detector.needs, seeds=seeds, differentiable=True)
            excess = ((detector.score(seen).values - middle) / (high - middle)).clamp_min(0)
            return (-margin(seen.logits, classes)).clamp_max(1.0) - 0.3 * torch.log1p(excess)

        eps = levels * LEVEL
        images = ascend(clean, loss, eps=eps, steps=steps, size=eps / 10, low=0.0, high=1.0, generator=None)
        images = (images / LEVEL).round() * LEVEL
        with torch.no_grad():
            return images[logits_of(self.probe)(images).argmax(1) != classes]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small are slower on many threads, and on one they train alike wherever there are more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def site() -> Site:
    """Trained once a run, in seconds: what is fitted here are real detectors of a real, small model."""
    model = _exported(_trained(*pictures(600, seed=0), epochs=10))
    reference = Reference.from_onnx(model)
    clean, _ = pictures(300, seed=1)
    teacher = logits_of(Probe(reference, {}, (), activation=Activation.NONE, span=SPAN, size=(SIZE, SIZE)))
    torch.manual_seed(1)
    twins = {
        COPIED_TWIN: harden(
            CopiedTwin(reference, Activation.NONE, SPAN), teacher, clean, recipe=QUICK, seed=2
        ),
        SMALL_TWIN: harden(SmallTwin(1, 3, width=8), teacher, clean, recipe=QUICK, seed=3),
    }  # fmt: skip
    probe = Probe(
        reference, twins, reference.tap_names, activation=Activation.NONE, span=SPAN, size=(SIZE, SIZE)
    )  # fmt: skip
    found = simulate(teacher, clean, device=CPU, seed=4)
    material = Material(clean, harmless(clean, seed=6), found.images, found.sources, probe, seed=7)
    test, labels = pictures(150, seed=2)
    with torch.no_grad():
        right = teacher(test).argmax(1) == labels
    return Site(model, probe, material, test[right])


def ovals(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """(N, 1, 32, 32) in whole grey levels: a faint spot on noise, taller than wide or wider than tall."""
    draw, labels = torch.Generator().manual_seed(seed), torch.arange(count) % 2
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    y, x = torch.rand(2, count, 1, 1, generator=draw) * 16 + 8
    wide, tall = (torch.where(labels.view(-1, 1, 1) == side, 7.0, 4.0) for side in (1, 0))
    spot = 25 * torch.exp(-(((rows - y) / tall) ** 2) - ((columns - x) / wide) ** 2)
    grey = 90 + spot + 3 * torch.randn(count, 32, 32, generator=draw)
    return (grey.round().clamp(0, 255) * LEVEL)[:, None], labels


@pytest.fixture(scope="session")
def smooth() -> tuple[Site, nn.Module]:
    """A second site, whose classes differ in a broad shape, so that squeezing takes nothing that decides; its victim.

    It has no twins, and nothing is fitted on attacks there.
    """
    victim = _trained(*ovals(600, 0), epochs=8)
    model = _exported(victim)
    reference = Reference.from_onnx(model)
    probe = Probe(reference, {}, reference.tap_names, activation=Activation.NONE, span=SPAN, size=(SIZE, SIZE))
    clean, (test, _) = ovals(120, 1)[0], ovals(150, 2)
    return Site(model, probe, Material(clean, clean, clean, torch.arange(120), probe, seed=7), test), victim
